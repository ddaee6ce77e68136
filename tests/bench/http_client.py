"""HTTP/1.1 over a kept connection: no more than the measurements need, so that the client takes little CPU."""

import asyncio
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit


def request_bytes(method: str, path: str, body: bytes = b"") -> bytes:
    """A request as it is sent."""
    head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    if body:
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + b"\r\n" + body


class Connection:
    """One connection, for one request at a time. A context manager. head: of the last answer, in lower case."""

    def __init__(self, base: str) -> None:
        address = urlsplit(base)
        self._host, self._port = address.hostname, address.port
        self.head = b""

    async def __aenter__(self) -> Self:
        self._reader, self._writer = await asyncio.open_connection(self._host, self._port)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._writer.close()

    async def send(self, request: bytes) -> tuple[int, bytes]:
        """Send a request; its answer's status and body, which may come in chunks."""
        self._writer.write(request)
        self.head = head = (await self._reader.readuntil(b"\r\n\r\n")).lower()
        status = int(head[9:12])
        _, found, rest = head.partition(b"\r\ncontent-length:")
        if found:
            return status, await self._reader.readexactly(int(rest[: rest.index(b"\r\n")]))
        return status, await self._read_chunks() if b"\r\ntransfer-encoding: chunked" in head else b""

    async def _read_chunks(self) -> bytes:
        body = b""
        while size := int(await self._reader.readline(), 16):
            body += (await self._reader.readexactly(size + 2))[:-2]
        await self._reader.readexactly(2)
        return body
