"""The open load generator, a process of its own: requests at a fixed rate, whether or not earlier ones are answered."""

import asyncio
import sys
import time
from collections import Counter

import msgspec
import uvloop

from tests.bench.http_client import Connection, request_bytes

_MAX_CONNECTIONS = 1000


class OpenLoad(msgspec.Struct, frozen=True):
    """What to send: so many POSTs a second, for so many seconds."""

    base: str
    path: str
    body: str
    rate: float
    seconds: float


class OpenLoadResult(msgspec.Struct):
    """What came back. Latencies are seconds since a request was due. unsent: no connection was free."""

    answers: dict[str, int]
    accepted: list[float]
    refused: list[float]
    without_retry_after: int
    unsent: int


class _Generator:
    def __init__(self, load: OpenLoad) -> None:
        self._load = load
        self._request = request_bytes("POST", load.path, load.body.encode())
        self._free: list[Connection] = []
        self._open = 0
        self._answers: Counter[str] = Counter()
        self.result = OpenLoadResult({}, [], [], 0, 0)

    async def run(self) -> OpenLoadResult:
        began, number = time.perf_counter(), 0
        async with asyncio.TaskGroup() as tasks:
            while (due := number / self._load.rate) < self._load.seconds:
                await asyncio.sleep(began + due - time.perf_counter())
                if not self._free and self._open >= _MAX_CONNECTIONS:
                    self.result.unsent += 1
                else:
                    connection = self._free.pop() if self._free else None
                    self._open += connection is None
                    tasks.create_task(self._send(connection, began + due))
                number += 1
        self.result.answers = dict(self._answers)
        return self.result

    async def _send(self, connection: Connection | None, due: float) -> None:
        try:
            connection = connection or await Connection(self._load.base).__aenter__()
            status, _ = await connection.send(self._request)
        except (asyncio.IncompleteReadError, ConnectionError):
            # The server closes a connection that was idle for long, perhaps just now: clients send again.
            connection = await Connection(self._load.base).__aenter__()
            status, _ = await connection.send(self._request)
        seconds = time.perf_counter() - due
        self._free.append(connection)
        self._answers[str(status)] += 1
        if status < 300:  # a success
            self.result.accepted.append(seconds)
            return
        self.result.refused.append(seconds)
        self.result.without_retry_after += b"\r\nretry-after:" not in connection.head


def _main() -> None:
    for line in sys.stdin:
        result = uvloop.run(_Generator(msgspec.json.decode(line, type=OpenLoad)).run())
        sys.stdout.write(msgspec.json.encode(result).decode() + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _main()
