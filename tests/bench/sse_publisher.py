"""The publisher of part 4, a process of its own: commits events of many jobs at a steady rate.

Each publication has a number, which its events carry as `done`: the client finds the time of its commit by it.
"""

import asyncio
import sys
import time
from uuid import UUID

import msgspec
import uvloop

from eventstore.committer import Committer
from eventstore.database import Database
from eventstore.ids import new_id
from eventstore.log import Append, Batch, Log
from eventstore.notifier import Notifier
from orchestrator.events import Meta, SamplingTick
from orchestrator.service import make_event
from tests.bench.sse_app import CHANNEL

GROUPS = 10
"""A publication is of one group of the jobs: they take turns, so that not all subscribers are served at once."""


class Publish(msgspec.Struct, frozen=True):
    """Commit `per_s` events a second of each job. ours: in the log; else in the table of the bare fan-out."""

    job_ids: list[UUID]
    seconds: float
    per_s: float
    ours: bool


class Published(msgspec.Struct, frozen=True):
    """When each publication was committed, by its number; how many were late by a whole interval."""

    committed_at: dict[int, float]
    late: int


class Publisher:
    """Publishes into one database."""

    def __init__(self, db_url: str) -> None:
        self._database = Database(db_url)
        self._notifier = Notifier(self._database)
        self._committer = Committer(Log(self._database), self._notifier)
        self._versions: dict[UUID, int] = {}
        self._number = 0
        self._step_id = new_id()

    async def publish(self, ask: Publish) -> Published:
        """Publish at a steady rate."""
        self._notifier.start()
        groups = [group for number in range(GROUPS) if (group := ask.job_ids[number::GROUPS])]
        interval = 1 / ask.per_s / len(groups)
        committed_at: dict[int, float] = {}
        late = 0
        began = time.perf_counter()
        for turn in range(int(ask.seconds / interval)):
            left = began + turn * interval - time.perf_counter()
            late += left < -interval
            await asyncio.sleep(max(0.0, left))
            self._number += 1
            await (self._append if ask.ours else self._insert)(groups[turn % len(groups)])
            committed_at[self._number] = time.perf_counter()
        return Published(committed_at, late)

    def _tick(self) -> SamplingTick:
        return SamplingTick(
            step_id=self._step_id, step_name="generate", attempt=1, items=[0], done=self._number, of=1_000_000
        )

    async def _append(self, job_ids: list[UUID]) -> None:
        event, meta = self._tick(), Meta(actor="bench")
        appends = [
            Append(stream=job, category="job", expected=self._versions.get(job, 1), events=(make_event(event, meta),))
            for job in job_ids
        ]
        outcome = await self._committer.commit_batch(Batch(appends=appends))
        if not all(stream.committed for stream in outcome.streams.values()):
            raise RuntimeError("an append was refused")
        self._versions |= {job: stream.version for job, stream in outcome.streams.items()}

    async def _insert(self, job_ids: list[UUID]) -> None:
        event = self._tick()
        data = {"code": event.code, "message": event.message(), **msgspec.to_builtins(event)}
        await self._database.execute_once(
            "insert into bare_events (job_id, data) select job_id, $2::json from unnest($1::uuid[]) as job_id",
            job_ids,
            msgspec.json.encode(data).decode(),
        )
        await self._database.execute_once("select pg_notify($1, '')", CHANNEL)


async def _main(db_url: str) -> None:
    publisher = Publisher(db_url)
    while line := await asyncio.to_thread(sys.stdin.readline):
        answer = await publisher.publish(msgspec.json.decode(line, type=Publish))
        sys.stdout.write(msgspec.json.encode(answer).decode() + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    uvloop.run(_main(sys.argv[1]))
