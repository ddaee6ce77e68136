"""The subscribers of part 4, a process of its own: opens streams, and notes when each event arrives."""

import asyncio
import re
import socket
import sys
import time
from urllib.parse import urlsplit

import msgspec
import uvloop

from tests.bench.http_client import request_bytes

_EVENT = re.compile(rb'"done":(\d+)[^\n]*\nid: ')
"""An event with an id, by the number of its publication."""
_SLOW_BYTES = 256
_SLOW_EVERY_S = 0.25
_SLOW_RECEIVE_BUFFER = 4096


class Ask(msgspec.Struct, frozen=True):
    """Open these streams, of which the last `slow` read slowly; else answer what has arrived, and forget it.

    close: leave all streams.
    """

    base: str = ""
    paths: list[str] = []
    slow: int = 0
    close: bool = False


class Arrivals(msgspec.Struct, frozen=True):
    """Events of those who read as they can: the number of each one's publication, and when it came."""

    events: list[tuple[int, float]]


class Subscriber(asyncio.Protocol):
    """Reads one stream."""

    def __init__(self, request: bytes, events: list[tuple[int, float]]) -> None:
        self._request = request
        self._events = events
        self._rest = b""
        self.began = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask for the stream."""
        self.transport = transport
        transport.write(self._request)  # type: ignore[attr-defined]  # a TCP transport

    def data_received(self, data: bytes) -> None:
        """Note the events of a chunk."""
        now = time.perf_counter()
        if not self.began.done():
            self.began.set_result(None)
        # Kept from the last whole frame: one may be cut in two.
        text = self._rest + data
        self._events += [(int(number), now) for number in _EVENT.findall(text)]
        end = text.rfind(b"\nid: ")
        self._rest = text[end + 5 :] if end >= 0 else text


class Subscribers:
    """All subscribers of the process."""

    def __init__(self) -> None:
        self._events: list[tuple[int, float]] = []
        self._open: list[asyncio.BaseTransport] = []
        self._slow: list[asyncio.Task[None]] = []

    async def answer(self, ask: Ask) -> Arrivals:
        """Do as asked."""
        if ask.close:
            self._close()
        quick = len(ask.paths) - ask.slow
        for start in range(0, quick, 50):
            await asyncio.gather(
                *(self._subscribe(ask.base, path) for path in ask.paths[start : min(start + 50, quick)])
            )
        for path in ask.paths[quick:]:
            await self._subscribe_slowly(ask.base, path)
        events, self._events[:] = list(self._events), []
        return Arrivals(events)

    def _close(self) -> None:
        for transport in self._open:
            transport.close()
        for task in self._slow:
            task.cancel()
        self._open, self._slow = [], []

    async def _subscribe(self, base: str, path: str) -> None:
        transport, protocol = await asyncio.get_running_loop().create_connection(
            lambda: Subscriber(request_bytes("GET", path), self._events), *_address(base)
        )
        self._open.append(transport)
        await protocol.began

    async def _subscribe_slowly(self, base: str, path: str) -> None:
        loop = asyncio.get_running_loop()
        slow = socket.socket()
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SLOW_RECEIVE_BUFFER)
        slow.setblocking(False)  # noqa: FBT003  # its only parameter
        await loop.sock_connect(slow, _address(base))
        await loop.sock_sendall(slow, request_bytes("GET", path))
        self._slow.append(asyncio.create_task(_read_slowly(slow)))


def _address(base: str) -> tuple[str, int]:
    address = urlsplit(base)
    return address.hostname or "", address.port or 80


async def _read_slowly(slow: socket.socket) -> None:
    with slow:
        while await asyncio.get_running_loop().sock_recv(slow, _SLOW_BYTES):  # noqa: ASYNC110  # slow on purpose
            await asyncio.sleep(_SLOW_EVERY_S)


async def _main() -> None:
    subscribers = Subscribers()
    while line := await asyncio.to_thread(sys.stdin.readline):
        answer = await subscribers.answer(msgspec.json.decode(line, type=Ask))
        sys.stdout.write(msgspec.json.encode(answer).decode() + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    uvloop.run(_main())
