"""Part 11: the resident memory of `dreamforge up` over many chained jobs with empty steps."""

import asyncio
import contextlib
import json
import time

import asyncpg
import msgspec
import psutil

from tests.bench import ours
from tests.bench.http_client import Connection
from tests.bench.jobs import Say
from tests.bench.peers.protocol import RowCounter
from tests.bench.results import MemoryResult, MemorySample
from tests.bench.stack import Stack
from tests.bench.work import Job

_CATCH_UP_LIMIT_S = 60.0
_SUCCEEDED_SQL = "select count(*) from readmodel.jobs where status = 'succeeded'"
_PROGRAM = "tests.bench.empty_service"


class MemorySize(msgspec.Struct, frozen=True):
    """How much to measure. outstanding: clients, each with one job at a time. every_s: between samples."""

    jobs: int
    outstanding: int
    every_s: float


class MemoryPart:
    """Measures part 11."""

    def __init__(self, stack: Stack, size: MemorySize, say: Say) -> None:
        self._stack = stack
        self._size = size
        self._say = say
        self._ended = 0
        self._samples: list[MemorySample] = []

    def run(self) -> MemoryResult:
        """Run the jobs, then verify the log. Raises RuntimeError if a job fails or an event does not verify."""
        with self._stack.database("memory") as db_url:
            with ours.up(self._stack, "memory", db_url, program=_PROGRAM) as up:
                asyncio.run(self._run_jobs(up))
                asyncio.run(_expect_succeeded(db_url, self._size.jobs))
            self._say("audit verify --all")
            environ = ours.service_environ(db_url, self._stack.s3)
            found = json.loads(ours.run_command(environ, "audit", "verify", "--all", "--output", "json"))
        return MemoryResult(self._size.jobs, self._samples, found["events"])

    async def _run_jobs(self, up: ours.Up) -> None:
        sampling = asyncio.create_task(self._sample(psutil.Process(up.pid)))
        numbers = iter(range(1, self._size.jobs + 1))

        async def client() -> None:
            async with Connection(up.base) as http:
                for number in numbers:
                    await ours.wait_for_end(http, await ours.create(http, Job(number)))
                    self._ended += 1

        try:
            await asyncio.gather(*(client() for _ in range(self._size.outstanding)))
        finally:
            sampling.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await sampling

    async def _sample(self, process: psutil.Process) -> None:
        """Take samples, the last one when it is cancelled."""
        began = time.monotonic()

        def take() -> None:
            rss = sum(one.memory_info().rss for one in (process, *process.children(recursive=True)))
            self._samples.append(MemorySample(time.monotonic() - began, self._ended, rss))

        try:
            while True:
                take()
                if self._ended and len(self._samples) % 12 == 0:
                    self._say(f"{self._ended:,} jobs, {self._samples[-1].rss / 2**20:.1f} MiB")
                await asyncio.sleep(self._size.every_s)
        finally:
            take()


async def _expect_succeeded(db_url: str, jobs: int) -> None:
    """Wait until the read model shows that all jobs succeeded. Raises TimeoutError if it does not."""
    database = await asyncpg.connect(db_url)
    async with asyncio.timeout(_CATCH_UP_LIMIT_S):
        await RowCounter(database, _SUCCEEDED_SQL).wait_for(jobs)
    await database.close()
