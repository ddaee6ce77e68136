"""Part 9: a long log beside a short one on the same server, and many slots beside few."""

import asyncio
import contextlib
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count, islice

import asyncpg
import msgspec

from tests.bench import ours
from tests.bench.filling import EVENTS_PER_JOB, Fill
from tests.bench.http_client import Connection, request_bytes
from tests.bench.jobs import Say
from tests.bench.results import GrowthResult, GrowthSide, SlotsLine
from tests.bench.stack import Conversation, Stack, execute, python
from tests.bench.work import Job

SLOTS = (16, 256)
_CONNECTIONS = 4
_FILL_LIMIT_S = 7200.0
_WARM_UP_JOBS = 10
_WARM_UP_READS = 50
_ORCHESTRATOR_CAUGHT_UP_SQL = """
select projector.stand('orchestrator', array(
    select coalesce((select max(position) from eventstore.envelopes e where e.partition = p), 0)
    from eventstore.log, generate_series(0, partitions - 1) as p order by p))
"""
_BYTES_SQL = """
select coalesce(sum(pg_total_relation_size(oid)), 0)::bigint
from pg_class where relkind = 'r' and relnamespace = $1::text::regnamespace
"""
_LEAVES_SQL = "select count(*) from pg_inherits where inhparent = 'eventstore.envelopes'::regclass"
_SOME_JOBS_SQL = "select job_id::text from readmodel.jobs order by random() limit $1"


class GrowthSize(msgspec.Struct, frozen=True):
    """How much to measure. small, large: events of the logs. reads, alone: requests and lone jobs of a turn."""

    small: int
    large: int
    pairs: int
    reads: int
    alone: int
    slots_rounds: int
    slots_jobs: int


class _Side(msgspec.Struct, frozen=True):
    """A filled database. paths: of its finished jobs, in random order."""

    name: str
    db_url: str
    paths: Iterator[str]
    result: GrowthSide


class GrowthPart:
    """Measures part 9."""

    def __init__(self, stack: Stack, size: GrowthSize, say: Say) -> None:
        self._stack = stack
        self._size = size
        self._say = say
        self._numbers = count(1)

    def run(self) -> GrowthResult:
        """Fill both logs and measure them in turns; then the slots."""
        with contextlib.ExitStack() as databases:
            small = databases.enter_context(self._filled("growth_small", self._size.small))
            large = databases.enter_context(self._filled("growth_large", self._size.large))
            self._say("PostgreSQL starts anew")
            self._stack.restart_postgres()
            for number in range(self._size.pairs):
                self._say(f"pair {number + 1} of {self._size.pairs}: a short and a long log")
                self._measure_pair(number, [small, large] if number % 2 == 0 else [large, small])
        return GrowthResult(small.result, large.result, self._measure_slots())

    @contextlib.contextmanager
    def _filled(self, name: str, events: int) -> Iterator[_Side]:
        """A database with a log of about so many events and its read model."""
        with self._stack.database(name) as db_url:
            environ = ours.service_environ(db_url, self._stack.s3)
            ours.run_command(environ, "schema", "install")
            self._say(f"appending {events:,} events")
            began = time.perf_counter()
            jobs = events // EVENTS_PER_JOB
            written = fill(self._stack, db_url, jobs)
            append_rate = written / (time.perf_counter() - began)
            self._say(f"{append_rate:.0f} events/s; building the read model")
            rebuilt = json.loads(ours.run_command(environ, "projections", "rebuild", "--json"))
            asyncio.run(execute(db_url, _ORCHESTRATOR_CAUGHT_UP_SQL, "vacuum (analyze)"))
            result, job_ids = asyncio.run(self._describe(db_url, written, jobs))
            result.append_rate, result.rebuild_rate = append_rate, rebuilt["rate"]
            yield _Side(name, db_url, _endless(job_ids), result)

    async def _describe(self, db_url: str, events: int, jobs: int) -> tuple[GrowthSide, list[str]]:
        """The sizes of a database, and as many of its jobs as are read."""
        database = await asyncpg.connect(db_url)
        log, read_model = [await database.fetchval(_BYTES_SQL, schema) for schema in ("eventstore", "readmodel")]
        leaves = await database.fetchval(_LEAVES_SQL)
        wanted = 2 * (self._size.reads + _WARM_UP_READS) * self._size.pairs
        job_ids = [row[0] for row in await database.fetch(_SOME_JOBS_SQL, wanted)]
        await database.close()
        return GrowthSide(events, jobs, log, read_model, leaves, 0.0, 0.0), job_ids

    def _measure_pair(self, number: int, sides: list[_Side]) -> None:
        """A turn of each side, while the service of the other one is idle."""
        with contextlib.ExitStack() as services:
            started = [
                services.enter_context(ours.up(self._stack, f"{side.name}_{number}", side.db_url)) for side in sides
            ]
            for side, up in zip(sides, started, strict=True):
                asyncio.run(self._turn(side, up.base))

    async def _turn(self, side: _Side, base: str) -> None:
        async with Connection(base) as http:
            await self._alone(http, _WARM_UP_JOBS)
            posts, runs = await self._alone(http, self._size.alone)
            found = {"POST": posts, "POST to the end of its stream": runs}
            for name, suffix in (("GET", ""), ("GET progress", "/progress")):
                await _read(http, side.paths, suffix, _WARM_UP_READS)
                found[name] = await _read(http, side.paths, suffix, self._size.reads)
        for operation, seconds in found.items():
            side.result.seconds.setdefault(operation, []).append(seconds)

    async def _alone(self, http: Connection, jobs: int) -> tuple[list[float], list[float]]:
        """Run jobs one after the other; the seconds of each POST, and until the end of each stream."""
        posts, runs = [], []
        for number in islice(self._numbers, jobs):
            began = time.perf_counter()
            job_id = await ours.create(http, Job(number))
            posts.append(time.perf_counter() - began)
            await ours.wait_for_end(http, job_id)
            runs.append(time.perf_counter() - began)
        return posts, runs

    def _measure_slots(self) -> list[SlotsLine]:
        lines = [SlotsLine(slots) for slots in SLOTS]
        for number in range(self._size.slots_rounds):
            for line in lines if number % 2 == 0 else reversed(lines):
                self._say(f"round {number + 1} of {self._size.slots_rounds}: {line.slots} slots")
                name = f"slots_{line.slots}_{number}"
                with (
                    self._stack.database(name) as db_url,
                    ours.up(self._stack, name, db_url, {"DF_RUNNER_SLOTS": str(line.slots)}) as up,
                ):
                    line.jobs_per_s.append(asyncio.run(self._rate(up.base, db_url)))
        return lines

    async def _rate(self, base: str, db_url: str) -> float:
        async with ours.connected(base, db_url) as client:
            await client.run_all([Job(number) for number in islice(self._numbers, _WARM_UP_JOBS)])
            began = time.perf_counter()
            await client.run_all([Job(number) for number in islice(self._numbers, self._size.slots_jobs)])
            return self._size.slots_jobs / (time.perf_counter() - began)


def fill(stack: Stack, db_url: str, jobs: int) -> int:
    """Fill a log with the histories of so many jobs, by several processes; the events."""
    shares = [jobs // _CONNECTIONS + (number < jobs % _CONNECTIONS) for number in range(_CONNECTIONS)]
    fills = [Fill(db_url, share, number, _CONNECTIONS) for number, share in enumerate(shares)]
    log, command = stack.home / "filling.log", python("tests.bench.filling")
    with contextlib.ExitStack() as open_processes, ThreadPoolExecutor(_CONNECTIONS) as threads:
        processes = [
            open_processes.enter_context(Conversation(command, log, limit_s=_FILL_LIMIT_S)) for _ in range(_CONNECTIONS)
        ]
        answers = threads.map(
            lambda pair: pair[0].ask(msgspec.to_builtins(pair[1])), zip(processes, fills, strict=True)
        )
        return sum(answer["events"] for answer in answers)


def _endless(job_ids: list[str]) -> Iterator[str]:
    """The paths of jobs, again and again: a short log has fewer jobs than are read."""
    while True:
        for job_id in job_ids:
            yield f"/v1/jobs/{job_id}"


async def _read(http: Connection, paths: Iterator[str], suffix: str, requests: int) -> list[float]:
    """The seconds of each request. Raises RuntimeError at an error."""
    seconds = []
    for path in islice(paths, requests):
        request = request_bytes("GET", path + suffix)
        began = time.perf_counter()
        status, answer = await http.send(request)
        seconds.append(time.perf_counter() - began)
        if status != 200:
            raise RuntimeError(f"{path} answered {status}: {answer.decode()}")
    return seconds
