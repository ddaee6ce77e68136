"""Part 7: `dreamforge up` is offered ten times the jobs that it can run: what does it finish, how does it refuse?"""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager

import asyncpg
import msgspec

from tests.bench import ours
from tests.bench.figures import percentile
from tests.bench.http_client import Connection
from tests.bench.jobs import Say
from tests.bench.open_load import OpenLoad, OpenLoadResult
from tests.bench.results import OverloadResult
from tests.bench.stack import Conversation, Stack, python
from tests.bench.work import Job

_TIMES_BEST = 10
_QUEUE_S = 5
"""How many seconds of work may wait: DF_MAX_QUEUED_JOBS, from the rate that was measured."""

_SETTLE_S = 5.0
_LONE_JOBS = 20
_RECOVERY_LIMIT_S = 120.0
_COUNT_SQL = "select count(*) from readmodel.jobs where status = 'succeeded'"
_LATENCIES_SQL = """
select extract(epoch from updated_at - created_at)::float8 as seconds from readmodel.jobs where status = 'succeeded'
"""


class OverloadSize(msgspec.Struct, frozen=True):
    """How much to measure. best_jobs: submitted at once, to find the best rate."""

    best_jobs: int
    seconds: float


class OverloadPart:
    """Measures part 7."""

    def __init__(self, stack: Stack, size: OverloadSize, say: Say) -> None:
        self._stack = stack
        self._size = size
        self._say = say

    def run(self) -> OverloadResult:
        """Find the best rate, then offer ten times as much."""
        self._say(f"the best rate, of {self._size.best_jobs} jobs")
        with self._service("overload_best", {}) as (base, db_url):
            best = asyncio.run(self._best_rate(base, db_url))
        limit = max(1, round(best * _QUEUE_S))
        self._say(f"{best:.1f} jobs/s; {best * _TIMES_BEST:.0f} are offered for {self._size.seconds:g} s")
        log = self._stack.home / "open_load.log"
        with (
            self._service("overload", {"DF_MAX_QUEUED_JOBS": str(limit)}) as (base, db_url),
            Conversation(python("tests.bench.open_load"), log, limit_s=self._size.seconds + 120) as generator,
        ):
            return asyncio.run(self._overload(base, db_url, generator, best))

    @contextmanager
    def _service(self, name: str, environ: dict[str, str]) -> Iterator[tuple[str, str]]:
        log, home = self._stack.home / f"{name}.log", self._stack.home / name
        with self._stack.database(name) as db_url:
            given = ours.service_environ(db_url, self._stack.s3) | {"DF_HOME": str(home)} | environ
            with ours.role("up", given, log):
                yield ours.listening_url(log), db_url

    async def _best_rate(self, base: str, db_url: str) -> float:
        async with ours.connected(base, db_url) as client:
            await client.run_all([Job(number + 1) for number in range(20)])
            began = time.perf_counter()
            await client.run_all([Job(number + 1) for number in range(self._size.best_jobs)])
            return self._size.best_jobs / (time.perf_counter() - began)

    async def _overload(self, base: str, db_url: str, generator: Conversation, best: float) -> OverloadResult:
        database = await asyncpg.connect(db_url)
        alone = [await _run_alone(base) for _ in range(_LONE_JOBS)]
        load = OpenLoad(base, "/v1/jobs", ours.creation_body(Job(1)), best * _TIMES_BEST, self._size.seconds)
        loading = asyncio.create_task(asyncio.to_thread(generator.ask, msgspec.to_builtins(load)))
        await asyncio.sleep(_SETTLE_S)
        began, before = time.perf_counter(), await database.fetchval(_COUNT_SQL)
        answered = msgspec.convert(await loading, OpenLoadResult)
        finished = await database.fetchval(_COUNT_SQL) - before
        goodput, ended = finished / (time.perf_counter() - began), time.perf_counter()
        while await _run_alone(base) > 2 * percentile(alone, 50):
            if time.perf_counter() - ended > _RECOVERY_LIMIT_S:
                break
        recovered = time.perf_counter() - ended
        latencies = [row["seconds"] for row in await database.fetch(_LATENCIES_SQL)]
        await database.close()
        return OverloadResult(best, goodput, answered, latencies, recovered)


async def _run_alone(base: str) -> float:
    """The seconds of a job alone, from its first request; it is tried again while it is refused."""
    began = time.perf_counter()
    async with Connection(base) as connection:
        while True:
            try:
                job_id = await ours.create(connection, Job(1))
                break
            except RuntimeError:
                await asyncio.sleep(0.2)
        await ours.wait_for_end(connection, job_id)
    return time.perf_counter() - began
