"""Part 8: what runners that have nothing to do cost, and how soon one of them starts a job."""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Iterator
from typing import NamedTuple

import asyncpg
import msgspec
import psutil

from tests.bench import ours
from tests.bench.cpu import cpu_ms_per_job, cpu_seconds
from tests.bench.http_client import Connection
from tests.bench.jobs import Say
from tests.bench.results import FleetLine
from tests.bench.stack import Stack, python, running
from tests.bench.work import Job

_LIMIT_S = 600.0
_STUBS_CONNECTIONS = 32
_LISTENERS_SQL = "select client_port from pg_stat_activity where query like 'LISTEN%' and query like '%df_q_%'"
_STARTS_SQL = """
select extract(epoch from started.recorded_at - created.recorded_at)::float8 as seconds
from eventstore.events created join eventstore.events started using (stream_id)
where created.code = 'job.created' and started.code = 'step.start' and started.version = 2
order by created.recorded_at desc limit $1
"""


class FleetSize(msgspec.Struct, frozen=True):
    """How much to measure. runners: of one slot each, beside `dreamforge up`. rate: jobs a second, for `seconds`.

    stubs: as many runners in one process, since the machine has no memory for so many processes; 0 for none.
    """

    runners: tuple[int, ...]
    stubs: int
    rate: float
    seconds: float
    burst: int


class Fleet(NamedTuple):
    """Runners beside `dreamforge up`, in these processes. frozen: whether those that listen are to be stopped."""

    runners: int
    pids: list[int]
    frozen: bool


class FleetPart:
    """Measures part 8."""

    def __init__(self, stack: Stack, size: FleetSize, say: Say) -> None:
        self._stack = stack
        self._size = size
        self._say = say

    def run(self) -> list[FleetLine]:
        """Measure every size of the fleet; the largest of processes also with every runner frozen that listens."""
        lines = [self._measure(runners) for runners in self._size.runners]
        lines.append(self._measure(max(self._size.runners), frozen=True))
        return [*lines, self._measure(self._size.stubs, stubs=True)] if self._size.stubs else lines

    def _measure(self, runners: int, *, frozen: bool = False, stubs: bool = False) -> FleetLine:
        self._say(f"{runners} further runners" + (", those that listen frozen" if frozen else ""))
        name = f"fleet_{runners}_frozen" if frozen else f"fleet_{runners}"
        with self._stack.database(name) as db_url, contextlib.ExitStack() as stack:
            environ = ours.service_environ(db_url, self._stack.s3)
            log = self._stack.home / f"{name}.log"
            up = environ | {"DF_HOME": str(self._stack.home / name)}
            api = stack.enter_context(ours.role("up", up, log))
            base = ours.listening_url(log)
            one_slot = environ | {"DF_RUNNER_SLOTS": "1"}
            if stubs:
                command = python("tests.bench.fleet_stubs", str(runners))
                given = one_slot | {"DF_DB_CONNECTIONS": str(_STUBS_CONNECTIONS)}
                pids = [stack.enter_context(running(command, given, log)).pid]
            else:
                given = one_slot | {"DF_DB_CONNECTIONS": "4"}
                pids = [stack.enter_context(ours.role("runner", given, log)) for _ in range(runners)]
            fleet = Fleet(runners, pids, frozen)
            return asyncio.run(self._run_jobs(base, db_url, {"api": api}, fleet))

    async def _run_jobs(self, base: str, db_url: str, up: dict[str, int], fleet: Fleet) -> FleetLine:
        groups = {"postgresql": [self._stack.pids["postgresql"]], "up": list(up.values()), "runners": fleet.pids}
        database = await asyncpg.connect(db_url)
        await _until(database, "select count(*) from eventstore.processes", fleet.runners + 1)
        async with Connection(base) as http:
            with _frozen(await _listening(database, fleet.pids)) if fleet.frozen else contextlib.nullcontext():
                before = cpu_seconds(groups)
                jobs = await self._steady(http)
                await _until_done(database)
                cpu = cpu_ms_per_job(before, cpu_seconds(groups), jobs)
                starts = [row["seconds"] for row in await database.fetch(_STARTS_SQL, jobs)]
                for number in range(self._size.burst):
                    await ours.create(http, Job(number + 1))
                await _until_done(database)
                burst = [row["seconds"] for row in await database.fetch(_STARTS_SQL, self._size.burst)]
        sessions = await database.fetchval("select count(*) from pg_stat_activity where datname = current_database()")
        await database.close()
        return FleetLine(fleet.runners, fleet.frozen, jobs, cpu, starts, burst, sessions - 1)

    async def _steady(self, http: Connection) -> int:
        """Create jobs at a steady rate; how many."""
        began, jobs = time.monotonic(), int(self._size.rate * self._size.seconds)
        for number in range(jobs):
            await asyncio.sleep(began + number / self._size.rate - time.monotonic())
            await ours.create(http, Job(number + 1))
        return jobs


async def _until_done(database: asyncpg.Connection) -> None:
    await _until(database, "select -count(*) from readmodel.jobs where status not in ('succeeded', 'failed')", 0)


async def _until(database: asyncpg.Connection, statement: str, wanted: int) -> None:
    """Wait until a statement gives at least so many."""
    limit = time.monotonic() + _LIMIT_S
    while await database.fetchval(statement) < wanted:
        if time.monotonic() > limit:
            raise RuntimeError(f"{statement} does not reach {wanted}")
        await asyncio.sleep(0.05)


async def _listening(database: asyncpg.Connection, pids: list[int]) -> list[int]:
    """The processes among `pids` whose session listens for commands."""
    ports = {row["client_port"] for row in await database.fetch(_LISTENERS_SQL)}
    return [
        pid
        for pid in pids
        if any(one.laddr and one.laddr.port in ports for one in psutil.Process(pid).net_connections("tcp"))
    ]


@contextlib.contextmanager
def _frozen(pids: list[int]) -> Iterator[None]:
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
