"""How the suite talks to a peer. Each peer is a module with three commands, and gets a `PeerConfig` as JSON:

install   prepare the database, and end
work      run steps until SIGTERM
client    answer each line of JSON on the standard input: run jobs, and say how many seconds that took
"""

import asyncio
import sys
import time
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

import asyncpg
import msgspec

from tests.bench.work import Job, PeerConfig

_COUNT_EVERY_S = 0.01


class Request(msgspec.Struct, frozen=True):
    """Run jobs numbered from `first`: all at once, or one after the other."""

    first: int
    jobs: int
    count: int = 1
    alone: bool = False


class Client(Protocol):
    """A peer's client."""

    async def run_all(self, jobs: list[Job]) -> None:
        """Enqueue jobs; return when the last has succeeded."""

    async def run_alone(self, job: Job) -> None:
        """Enqueue a job; return when it has succeeded."""


async def measure(client: Client, request: Request) -> list[float]:
    """The seconds of a request: one value if all jobs run at once, else one for each job."""
    jobs = [Job(request.first + offset, request.count) for offset in range(request.jobs)]
    if not request.alone:
        return [await _seconds(client.run_all(jobs))]
    return [await _seconds(client.run_alone(job)) for job in jobs]


async def _seconds(work: Coroutine[Any, Any, None]) -> float:
    began = time.perf_counter()
    await work
    return time.perf_counter() - began


async def answer_requests(client: Client) -> None:
    """Answer the suite's requests until it closes the pipe."""
    while line := await asyncio.to_thread(sys.stdin.readline):
        seconds = await measure(client, msgspec.json.decode(line, type=Request))
        sys.stdout.write(msgspec.json.encode(seconds).decode() + "\n")
        sys.stdout.flush()


class RowCounter:
    """Waits until a statement counts so many more rows than before.

    every_s: how often it is run. For one job alone it is what the job's end is known by, so every millisecond.
    """

    def __init__(self, connection: asyncpg.Connection, statement: str) -> None:
        self._connection = connection
        self._statement = statement

    async def count(self) -> int:
        """The rows now."""
        return int(await self._connection.fetchval(self._statement))

    async def wait_for(self, wanted: int, *, every_s: float = _COUNT_EVERY_S) -> None:
        """Wait until there are so many rows."""
        while await self.count() < wanted:  # noqa: ASYNC110  # another process writes them
            await asyncio.sleep(every_s)


def main(commands: dict[str, Callable[[PeerConfig], None]]) -> None:
    """Run the command that the command line names."""
    name, config = sys.argv[1:]
    commands[name](msgspec.json.decode(config, type=PeerConfig))
