"""The load generator, a process of its own: so many clients, each with one connection and one request at a time."""

import asyncio
import sys
import time

import msgspec
import uvloop

from tests.bench.http_client import Connection, request_bytes


class Load(msgspec.Struct, frozen=True):
    """What to send, for so many seconds. paths: taken in turns. body: of each request."""

    base: str
    method: str
    paths: list[str]
    body: str
    status: int
    clients: int
    seconds: float


class LoadResult(msgspec.Struct, frozen=True):
    """What came back. latencies: seconds of each request."""

    seconds: float
    latencies: list[float]


async def generate(load: Load) -> LoadResult:
    """Send requests. Raises RuntimeError at an answer with another status."""
    requests = [request_bytes(load.method, path, load.body.encode()) for path in load.paths]
    latencies: list[float] = []
    began = time.perf_counter()
    end = began + load.seconds
    await asyncio.gather(
        *(_client(load, requests[number:] + requests[:number], latencies, end) for number in range(load.clients))
    )
    return LoadResult(time.perf_counter() - began, latencies)


async def _client(load: Load, requests: list[bytes], latencies: list[float], end: float) -> None:
    async with Connection(load.base) as connection:
        position, now = 0, time.perf_counter()
        while now < end:
            status, body = await connection.send(requests[position % len(requests)])
            answered = time.perf_counter()
            if status != load.status:
                raise RuntimeError(f"{load.base} answered {status}: {body.decode()}")
            latencies.append(answered - now)
            position, now = position + 1, answered


def _main() -> None:
    for line in sys.stdin:
        result = uvloop.run(generate(msgspec.json.decode(line, type=Load)))
        sys.stdout.write(msgspec.json.encode(result).decode() + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _main()
