"""Does a snapshot that somebody holds open slow the service down?

PostgreSQL removes no dead row that an open snapshot might still see. A queue that deletes and updates rows then wades
through ever more of them; a plain SKIP LOCKED queue was seen to fall to 39% of its rate.

Two databases run the whole path from job.created to job.finish in turns, window by window, as fast as it goes: pictures
and their store apart, which have no part in this. Both have four readers that scan their largest tables all the while.
In one of them a REPEATABLE READ snapshot is held from beginning to end. Each window appends a line to the results file.
"""

import argparse
import asyncio
import contextlib
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import asyncpg
import msgspec

from api import requests
from artifacts.object_store import ObjectStore, S3Config, StoredObject
from dreamforge import logs, schema
from dreamforge.embedded import EmbeddedPostgres
from eventstore.committer import Committer, Transition
from eventstore.database import Database
from eventstore.ids import new_id
from eventstore.log import Append, Log
from eventstore.notifier import Notifier
from eventstore.outbox import Outbox
from eventstore.subscription import Handler, Subscription
from orchestrator import codec, step_command
from orchestrator.events import Meta
from orchestrator.process_manager import Orchestrator
from orchestrator.service import JobService, make_event
from orchestrator.state import JobState
from orchestrator.step_command import StepClaim
from projections.projector import Projector
from runners.consumer import Consumer
from runners.fake_renderer import FakeRenderer
from runners.faults import FaultPlan
from runners.item_renderer import ItemRenderer
from runners.steps import RetryPolicy, StepRunner
from runners.threads import UnboundedThreadExecutor

IN_FLIGHT = 300
READERS = 4
REQUEST = b'{"type":"generate","prompt":"a castle","width":64,"height":64,"chain":{"upscale":{"scale":2}}}'
SCANS = ["select count(data::text) from eventstore.events", "select count(*) from readmodel.jobs"]
SIZES = """
select relname, n_live_tup, n_dead_tup, pg_total_relation_size(relid) / 1024 as kb
from pg_stat_user_tables where n_live_tup + n_dead_tup > 0 order by n_dead_tup desc
"""


class NoPixels(FakeRenderer):
    """Renders at once."""

    def __init__(self) -> None:
        super().__init__(faults=FaultPlan(), max_pixels=1)

    def render(self, job: JobState, step: str, index: int, source: bytes | None) -> bytes:
        """Nothing worth looking at."""
        del step
        return source or b"%s %d" % (job.job_id.bytes, index)


class NoStore(ObjectStore):
    """Stores nothing."""

    def __init__(self) -> None:
        super().__init__(S3Config(endpoint=None, access_key="", secret_key=""))

    async def put(self, key: str, body: bytes, content_type: str) -> StoredObject:
        """As if it were there."""
        del key, content_type
        return StoredObject(len(body), "0" * 64)

    async def get_verified(self, key: str, expected: StoredObject) -> bytes:
        """As if it had been there."""
        del expected
        return key.encode()


class Window(msgspec.Struct, frozen=True):
    """One window of one of the two: jobs a second, and how long the snapshot had been held by its end, in seconds."""

    held: bool
    rate: float
    at_s: float


class Arm:
    """One database, and the whole path of a job on it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._database = Database(url, max_connections=12)
        self._log = Log(self._database)
        self._notifier = Notifier(self._database)
        self._committer = Committer(self._log, self._notifier)
        jobs = JobService(self._log, self._committer, "bench")
        policy = RetryPolicy(max_attempts=3, first_delay_s=1, longest_delay_s=1)
        self._steps = StepRunner(
            jobs, NoStore(), ItemRenderer(NoPixels(), UnboundedThreadExecutor()), retry=policy, name="bench"
        )
        self._submitted = 0
        self._done = 0

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """All roles, for as long as the block."""
        outbox = Outbox(self._database, ["upscale", "generate"], step_command.decode)
        consumer = Consumer(outbox, self._notifier, self._run, slots=64, lease_s=15)
        handlers: list[Handler] = [Orchestrator(self._log, self._committer, "bench"), Projector(self._database)]
        work = [
            consumer.run(),
            *(Subscription(self._log, self._notifier, handler, codec.is_known).run() for handler in handlers),
        ]
        tasks = [asyncio.create_task(one) for one in work]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._committer.stop()
            await self._database.close()

    async def window(self, seconds: float) -> float:
        """Run as fast as it goes for so long; jobs a second. What is in flight by then ends outside the window."""
        began, before = time.monotonic(), self._done
        while time.monotonic() - began < seconds:
            await self._fill()
            await asyncio.sleep(0.01)
        rate = (self._done - before) / (time.monotonic() - began)
        while self._done < self._submitted:  # noqa: ASYNC110  # two counters make no event
            await asyncio.sleep(0.05)
        return rate

    async def _fill(self) -> None:
        free = IN_FLIGHT - (self._submitted - self._done)
        if free < IN_FLIGHT // 6:
            return
        submission = requests.parse_job_request(REQUEST)
        transitions = []
        for _ in range(free):
            created, private = requests.job_created_event(
                submission, seed=7, step_ids=(new_id(), new_id()), max_pixels=10**9
            )
            first = make_event(created, Meta(), private=private)
            transitions.append(Transition(append=Append(stream=new_id(), category="job", expected=0, events=(first,))))
        self._submitted += free
        await asyncio.gather(*(self._committer.commit(one) for one in transitions))

    async def _run(self, claim: StepClaim) -> None:
        await self._steps.run(claim)
        self._done += claim.command.step == "upscale"


@contextlib.asynccontextmanager
async def scanned(url: str) -> AsyncIterator[None]:
    """Readers that scan the database's largest tables, with a pause as long as each scan took."""

    async def scan(statement: str) -> None:
        connection = await asyncpg.connect(url)
        try:
            while True:
                began = time.monotonic()
                await connection.fetchval(statement)
                await asyncio.sleep(max(0.5, time.monotonic() - began))
        finally:
            connection.terminate()

    tasks = [asyncio.create_task(scan(SCANS[n % len(SCANS)])) for n in range(READERS)]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def arm(stack: AsyncExitStack, home: Path) -> Arm:
    """A database of its own, on a server of its own, with everything running on it."""
    postgres = await asyncio.to_thread(EmbeddedPostgres.start, home)
    stack.push_async_callback(asyncio.to_thread, postgres.stop)
    database = Database(postgres.url)
    await schema.install(database)
    await database.close()
    made = Arm(postgres.url)
    await stack.enter_async_context(made.running())
    return made


async def measure(minutes: float, window_s: float, results: Path) -> None:
    """Run windows in turns until the snapshot has been held for so long."""
    async with AsyncExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        clean, held = await arm(stack, home / "clean"), await arm(stack, home / "held")
        for one in (clean, held):
            await one.window(window_s / 3)  # warm
        snapshot = await asyncpg.connect(held.url)
        stack.push_async_callback(snapshot.close)
        transaction = snapshot.transaction(isolation="repeatable_read", readonly=True)
        await transaction.start()
        await snapshot.fetchval("select count(*) from eventstore.events")
        began = time.monotonic()
        turn = 0
        while time.monotonic() - began < minutes * 60:
            turn += 1
            for one in (clean, held) if turn % 2 else (held, clean):
                async with scanned(one.url):
                    rate = await one.window(window_s)
                line = Window(one is held, rate, time.monotonic() - began)
                with results.open("ab") as file:
                    file.write(msgspec.json.encode(line) + b"\n")
                _say(f"{'held' if line.held else 'clean':5} {line.at_s:6.0f} s {line.rate:7.1f} jobs/s")
        for name, one in (("clean", clean), ("held", held)):
            connection = await asyncpg.connect(one.url)
            await connection.execute("select pg_stat_force_next_flush()")
            for row in await connection.fetch(SIZES):
                _say(f"{name:5} {row[0]:16} live {row[1]:>9} dead {row[2]:>9} {row[3]:>9} kB")
            await connection.close()


def summary(results: Path) -> str:
    """What the windows say: the greatest rates of both, and the last third of the held one against the clean one."""
    windows = [msgspec.json.decode(line, type=Window) for line in results.read_bytes().splitlines()]
    clean = [one.rate for one in windows if not one.held]
    held = [one.rate for one in windows if one.held]
    late = held[-max(1, len(held) // 3) :], clean[-max(1, len(clean) // 3) :]
    return (
        f"{len(held)} windows each. Greatest: clean {max(clean):.1f}, held {max(held):.1f} jobs/s "
        f"({max(held) / max(clean):.0%}). Median: {statistics.median(clean):.1f}, {statistics.median(held):.1f} "
        f"({statistics.median(held) / statistics.median(clean):.0%}). Greatest of the last third: {max(late[1]):.1f}, "
        f"{max(late[0]):.1f} ({max(late[0]) / max(late[1]):.0%})."
    )


def _say(line: str) -> None:
    print(line, flush=True)  # noqa: T201  # the command's answer


def main() -> int:
    """Measure, and say what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30, help="how long the snapshot is held (30)")
    parser.add_argument("--window", type=float, default=15, help="seconds of each window (15)")
    parser.add_argument("--results", type=Path, default=Path("held-snapshot.jsonl"), help="where the windows go")
    args = parser.parse_args()
    logs.configure_logging("warning", "auto")
    args.results.unlink(missing_ok=True)
    asyncio.run(measure(args.minutes, args.window, args.results))
    _say(summary(args.results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
