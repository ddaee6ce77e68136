"""Rebuilds the read model while events arrive and users read, and checks all that is promised of it.

A log of a million events; then, while 200 events a second are appended and readers ask for jobs over HTTP:

    a rebuild ─▶ another, killed halfway, and run again ─▶ every row held against the log ─▶ a rollback

No read may fail, nor tell less of a job than was acknowledged before it began.
"""

import argparse
import asyncio
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from uuid import UUID

import httpx
import msgspec

from artifacts.object_store import S3Config
from dreamforge.embedded import EmbeddedPostgres
from dreamforge.schema import install
from eventstore import schema
from eventstore.database import Database
from eventstore.events import NewEvent
from eventstore.log import Append, Batch, Log
from orchestrator.events import ArtifactWritten, JobFinish, PersonalText
from projections.rebuild import Rebuild
from projections.subscription_status import read_subscription_statuses
from projections.verifier import ReadModelVerifier
from tests.kit import SERVICE_LOGIN, History, Service, dreamforge, event, roles_environ

IMAGES = 4
JOBS_PER_CALL = 50
TICK_S = 0.1
READERS = 2
PAUSE_S = 0.02
NO_STORE = S3Config(endpoint="http://127.0.0.1:9", access_key="none", secret_key="none")  # noqa: S106  # no read needs one
PROMPT = PersonalText(prompt="a castle on a hill at dawn, oil on canvas, muted colours", metadata={"client": "bench"})


class Reads(msgspec.Struct):
    """What the readers saw. slowest: in seconds."""

    count: int = 0
    failed: int = 0
    stale: int = 0
    slowest: float = 0.0
    problems: list[str] = []


class Users:
    """Those who append, and those who read. known: the version of each job that its appender was told of."""

    def __init__(self, log: Log, url: str, known: dict[UUID, int], rate: float) -> None:
        self._log = log
        self._url = url
        self._known = known
        self._rate = rate
        self.reads = Reads()

    @asynccontextmanager
    async def busy(self) -> AsyncIterator[None]:
        """Append and read for as long as the block."""
        async with httpx.AsyncClient(base_url=self._url, timeout=30) as client:
            tasks = [
                asyncio.create_task(self._append()),
                *(asyncio.create_task(self._read(client)) for _ in range(READERS)),
            ]
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()
                ended = await asyncio.gather(*tasks, return_exceptions=True)
                problems = [one for one in ended if not isinstance(one, asyncio.CancelledError)]
                if problems:
                    raise RuntimeError(f"the users broke: {problems}")

    async def _append(self) -> None:
        """Take many jobs an event further at a time, each from its creation to its end."""
        width = round(self._rate * TICK_S)
        due = time.monotonic()
        while True:
            jobs = [lived() for _ in range(width)]
            for version in range(len(jobs[0].events)):
                appends = [
                    Append(stream=job.job_id, category="job", expected=version, events=(events(job)[version],))
                    for job in jobs
                ]
                await self._log.commit(Batch(appends=appends))
                self._known.update({job.job_id: version + 1 for job in jobs})
                due += TICK_S
                await asyncio.sleep(max(0, due - time.monotonic()))

    async def _read(self, client: httpx.AsyncClient) -> None:
        rng = random.Random(7)  # noqa: S311  # no secret
        while True:
            # The newest are those that change; any other is as good as all.
            job = rng.choice(list(self._known)[-200:]) if rng.random() < 0.5 else rng.choice(list(self._known))
            expected, began = self._known[job], time.monotonic()
            answer = await client.get(f"/v1/jobs/{job}")
            reads = self.reads
            reads.count += 1
            reads.slowest = max(reads.slowest, time.monotonic() - began)
            if answer.status_code != 200:
                reads.failed += 1
                reads.problems.append(f"{answer.status_code}: {answer.text[:200]}")
            elif int(answer.headers["etag"].strip('"v')) < expected:
                reads.stale += 1
            await asyncio.sleep(PAUSE_S)


def lived() -> History:
    """A chained job of four images, from its creation to its end."""
    job = History(count=IMAGES)
    for name in ("generate", "upscale"):
        job.started(name).wrote(name, *range(IMAGES)).finished(name)
    return job.add(JobFinish(status="succeeded"))


def events(job: History) -> list[NewEvent]:
    """Its events as they are appended, with keys as long as real ones."""
    made = []
    for decoded in job.events:
        body = decoded.body
        if isinstance(body, ArtifactWritten):
            key = f"dreamforge/default/20261123T120000Z/{job.job_id}/{body.step_id}/{body.item_index}.png"
            body = msgspec.structs.replace(body, s3_key=key)
        if body is not None:
            made.append(event(body, private=PROMPT if decoded.version == 1 else None))
    return made


async def fill(log: Log, count: int) -> dict[UUID, int]:
    """Append so many events; answers each job's version."""
    known: dict[UUID, int] = {}
    while (written := sum(known.values())) < count:
        batch = [lived() for _ in range(JOBS_PER_CALL)]
        appends = [Append(stream=job.job_id, category="job", expected=0, events=tuple(events(job))) for job in batch]
        await log.commit(Batch(appends=appends))
        known.update({job.job_id: len(job.events) for job in batch})
        if written // 100_000 != sum(known.values()) // 100_000:
            say(f"  {sum(known.values()):,} events")
    return known


async def rebuilt(environ: dict[str, str], *arguments: str) -> dict[str, float]:
    """Run the command to its end; what it says of itself."""
    done = await asyncio.to_thread(dreamforge, "projections", *arguments, "--json", **environ)
    if done.returncode:
        raise RuntimeError(f"projections {arguments[0]} failed: {done.stderr}")
    answer: dict[str, float] = json.loads(done.stdout)
    return answer


async def killed_halfway(database: Database, environ: dict[str, str]) -> tuple[int, int]:
    """Begin a rebuild, and SIGKILL it with its workers halfway. Answers the chunks filled, and of how many."""
    process = Service("projections", environ, "rebuild").process
    rebuild = Rebuild(database)
    while True:
        now = (await rebuild.state()).rebuild
        if now is not None and now.filled * 2 >= now.chunks:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return now.filled, now.chunks
        await asyncio.sleep(0.05)


async def agree(database: Database) -> None:
    """Hold every row against its history, folded from the beginning, once the projector has caught up."""
    while any(one.lag for one in await read_subscription_statuses(database)):  # noqa: ASYNC110  # another process moves it
        await asyncio.sleep(0.5)
    verifier, jobs = ReadModelVerifier(database), 0
    found = await verifier.find_orphans()
    async for page in verifier.job_id_pages():
        jobs += len(page)
        found += await verifier.check_jobs(page)
    say(f"  {jobs:,} jobs held against the log: {len(found)} disagree")
    if found:
        raise RuntimeError(f"rows disagree with the log: {found[:3]}")


def told(what: str, answer: dict[str, float], seconds: float) -> None:
    """Say how one went."""
    rate = f", {answer['rate']:,.0f} events/s" if answer["events"] else ""
    say(f"  {what}: {seconds:.1f} s{rate}; {answer['lag_s'] * 1000:.0f} ms behind at the swap")


async def timed(what: str, work: Awaitable[dict[str, float]]) -> None:
    """Run, and say how it went."""
    began = time.monotonic()
    told(what, await work, time.monotonic() - began)


async def measure(count: int, rate: float) -> None:
    """All of it."""
    async with AsyncExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        postgres = await asyncio.to_thread(EmbeddedPostgres.start, home)
        stack.push_async_callback(asyncio.to_thread, postgres.stop)
        database = Database(postgres.url, time_limited=False)
        stack.push_async_callback(database.close)
        await install(database)
        await schema.ensure_service_login(database, *SERVICE_LOGIN)
        log = Log(database)
        environ = roles_environ(postgres.url, NO_STORE)
        say(f"filling the log with {count:,} events")
        known = await fill(log, count)
        # As autovacuum would have left it by the time.
        await database.execute_once("analyze")

        say("nobody else there")
        for workers in ("1", "2"):
            await timed(f"{workers} worker(s)", rebuilt(environ, "rebuild", "--workers", workers))
        roles = [Service(role, environ) for role in ("projector", "api")]
        stack.push_async_callback(asyncio.to_thread, lambda: [role.stop() for role in roles])
        users = Users(log, roles[1].url, known, rate)
        say(f"while {rate:g} events/s arrive, and {READERS} readers read")
        async with users.busy():
            await timed("rebuild", rebuilt(environ, "rebuild"))
            filled, chunks = await killed_halfway(database, environ)
            await timed(f"killed at {filled} of {chunks} chunks, run again", rebuilt(environ, "rebuild"))
        await agree(database)
        async with users.busy():
            await timed("rollback", rebuilt(environ, "rollback"))
        await agree(database)
        reads = users.reads
        say(
            f"reads: {reads.count:,}, {reads.failed} failed, {reads.stale} stale, slowest {reads.slowest * 1000:.0f} ms"
        )
        if reads.failed or reads.stale:
            raise RuntimeError(f"reads failed: {reads.problems[:5]}")


def say(line: str) -> None:
    """Print a line of the answer."""
    print(line, flush=True)  # noqa: T201  # the command's answer


def main() -> int:
    """Measure, and say what came out; exits with 1 if a promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=1_000_000, help="that the log holds at the beginning (1,000,000)")
    parser.add_argument("--rate", type=float, default=200, help="events a second that arrive meanwhile (200)")
    args = parser.parse_args()
    try:
        asyncio.run(measure(args.events, args.rate))
    except RuntimeError as error:
        say(f"broken: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
