"""Sets a job aside whose history some process can't read or handle: nothing is decided on it any more.

a reader rejects an event, again and again ─▶ job.quarantined, by version alone ─▶ every fold stops there
an operator ─▶ job.released ─▶ the job goes on, or stays failed
"""

import asyncio
from datetime import datetime
from typing import Literal, cast
from uuid import UUID

import msgspec
import structlog

from eventstore import codec, schema
from eventstore.database import Backoff
from eventstore.errors import DatabaseUnavailable
from eventstore.events import JobQuarantined, JobReleased
from eventstore.log import COLUMNS, Log, recorded
from orchestrator.quarantine import is_set_aside
from orchestrator.transact import note

_LOOK_S = 1.0
_STREAM_MARKS = f"""
select {COLUMNS} from eventstore.events
where stream_id = $1 and code in ('job.quarantined', 'job.released') order by version
"""  # noqa: S608  # constants
_MARKED = "select distinct stream_id from eventstore.events where code in ('job.quarantined', 'job.released')"
_REPORTED = """
select stream_id, reader, r.version, reason, e.tenant
from eventstore.rejections r join eventstore.events e using (stream_id) where e.version = 1
order by reported_at limit 100
"""
_RELEASE = "select max(release) as release from eventstore.releases"

_log = structlog.get_logger(__name__)


class QuarantinedJob(msgspec.Struct, frozen=True, kw_only=True):
    """A job that is set aside. state: quarantined, or closed where an operator left it failed."""

    job_id: UUID
    tenant: str
    since: datetime
    state: Literal["quarantined", "closed"]
    reader: str
    at_version: int
    reason: str
    version: int


class Quarantine:
    """Sets jobs aside, and releases them. Every method may raise `DatabaseUnavailable`; each may be repeated.

    actor: whoever does it, kept in the events' meta.
    """

    def __init__(self, log: Log, actor: str) -> None:
        self._log = log
        self._actor = actor

    async def add(self, job_id: UUID, tenant: str, *, reader: str, at_version: int, reason: str) -> bool:
        """Set a job aside, unless it is; False if a later release may be able to read what this one can't."""
        [newest] = await self._log.database.read(_RELEASE)
        if newest["release"] != schema.RELEASE:
            return False
        if not is_set_aside(await self._log.stream(job_id)):
            body = JobQuarantined(reader=reader, at_version=at_version, reason=reason)
            await note(self._log, job_id, "job", body, self._actor, tenant=tenant)
            _log.error("job set aside", job_id=str(job_id), reader=reader, at_version=at_version, reason=reason)
        await self._log.database.call("select eventstore.forget_rejection($1)", job_id)
        return True

    async def run(self) -> None:
        """Set aside what other processes report, until cancelled."""
        backoff = Backoff()
        while True:
            try:
                for row in await self._log.database.read(_REPORTED):
                    reported = {"reader": row["reader"], "at_version": row["version"], "reason": row["reason"]}
                    await self.add(row["stream_id"], row["tenant"], **reported)
                backoff.reset()
            except DatabaseUnavailable:
                await backoff.wait()
            await asyncio.sleep(_LOOK_S)

    async def check(self) -> None:
        """For readiness: raise `JobsSetAside` while any job is quarantined."""
        jobs = sum(one.state == "quarantined" for one in await self.all())
        if jobs:
            raise JobsSetAside(f"{jobs} job(s) set aside; see `dreamforge jobs quarantine list`")

    async def all(self) -> list[QuarantinedJob]:
        """Every job that was set aside and does not go on, the last first."""
        rows = await self._log.database.read(_MARKED)
        found = [await self.one(row["stream_id"]) for row in rows]
        return sorted((one for one in found if one is not None), key=lambda one: one.since, reverse=True)

    async def one(self, job_id: UUID) -> QuarantinedJob | None:
        """A job, if it is set aside."""
        history = recorded(await self._log.database.read(_STREAM_MARKS, job_id))
        if not is_set_aside(history):
            return None
        last = next(event for event in reversed(history) if event.code == JobQuarantined.code)
        body = cast("JobQuarantined", codec.body(last))
        return QuarantinedJob(
            job_id=job_id,
            tenant=last.tenant,
            since=last.ts,
            state="quarantined" if history[-1] is last else "closed",
            reader=body.reader,
            at_version=body.at_version,
            reason=body.reason,
            version=history[-1].version,
        )

    async def release(self, found: QuarantinedJob, *, resume: bool) -> None:
        """Let a job go on, or leave it failed for good."""
        await note(self._log, found.job_id, "job", JobReleased(resume=resume), self._actor, tenant=found.tenant)


class JobsSetAside(Exception):
    """Some jobs wait for an operator."""
