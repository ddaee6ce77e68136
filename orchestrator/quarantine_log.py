"""Sets a job aside whose history some process can't read or handle: nothing is decided on it any more.

a reader rejects an event, again and again ─▶ job.quarantined, by version alone ─▶ every fold stops there
an operator ─▶ job.released ─▶ the job goes on, or stays failed
"""

import asyncio
from collections.abc import Sequence
from datetime import datetime
from itertools import groupby
from typing import Literal
from uuid import UUID

import msgspec
import structlog
from prometheus_client import Gauge

from eventstore import schema
from eventstore.database import Backoff, Row
from eventstore.errors import EventStoreError
from eventstore.events import RecordedEvent
from eventstore.log import EVENT_COLUMNS, Log, recorded_events
from orchestrator import codec
from orchestrator.events import JobQuarantined, JobReleased
from orchestrator.quarantine import is_quarantined
from orchestrator.service import append_unconditionally

_POLL_S = 1.0
_QUARANTINE_MARKS_SQL = f"""
select {EVENT_COLUMNS} from eventstore.events
where code in ('job.quarantined', 'job.released') order by stream_id, version
"""  # noqa: S608  # constants
# What was reported before the job was released says nothing of it since.
_REPORTED_REJECTIONS_SQL = """
select stream_id, reader, r.version, reason, e.tenant, exists (
    select from eventstore.events released
    where released.stream_id = r.stream_id and released.code = 'job.released' and released.recorded_at > r.reported_at
) as outdated
from eventstore.rejections r join eventstore.events e using (stream_id) where e.version = 1
order by reported_at limit 100
"""
_FORGET_REJECTION_SQL = "select eventstore.forget_rejection($1)"
_SCHEMA_RELEASE_SQL = "select max(release) as release from eventstore.releases"

QUARANTINED_JOBS = Gauge("df_quarantined_jobs", "Jobs that are quarantined because their history cannot be read.")
QUARANTINED_JOBS_COUNT_SQL = """
select count(*) from (
    select distinct on (stream_id) code from eventstore.events
    where code in ('job.quarantined', 'job.released') order by stream_id, version desc
) as newest where code = 'job.quarantined'
"""
"""How many jobs wait for an operator, by their last marks."""

_UNREADABLE_MARK = JobQuarantined(reader="unknown", at_version=0, reason="the event that says it can't be read itself")

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

    async def quarantine_job(self, job_id: UUID, tenant: str, *, reader: str, at_version: int, reason: str) -> bool:
        """Set a job aside, unless it is; False if a later release may be able to read what this one can't."""
        [newest] = await self._log.database.read(_SCHEMA_RELEASE_SQL)
        if newest["release"] != schema.RELEASE:
            return False
        if not is_quarantined(await self._log.read_stream(job_id)):
            body = JobQuarantined(reader=reader, at_version=at_version, reason=reason)
            await append_unconditionally(self._log, job_id, "job", body, self._actor, tenant=tenant)
            _log.error("job set aside", job_id=str(job_id), reader=reader, at_version=at_version, reason=reason)
        await self._log.database.execute_once(_FORGET_REJECTION_SQL, job_id)
        return True

    async def run(self) -> None:
        """Set aside what other processes report, until cancelled."""
        backoff = Backoff()
        while True:
            try:
                for row in await self._log.database.read(_REPORTED_REJECTIONS_SQL):
                    await self._quarantine_reported(row)
                backoff.reset()
            except EventStoreError as error:
                _log.warning("reports of jobs that can't be read wait", error=str(error))
                await backoff.wait()
            await asyncio.sleep(_POLL_S)

    async def _quarantine_reported(self, reported: Row) -> None:
        job_id = reported["stream_id"]
        if reported["outdated"]:
            await self._log.database.execute_once(_FORGET_REJECTION_SQL, job_id)
            return
        why = {"reader": reported["reader"], "at_version": reported["version"], "reason": reported["reason"]}
        await self.quarantine_job(job_id, reported["tenant"], **why)

    async def check(self) -> None:
        """For readiness: raise `JobsQuarantined` while any job is quarantined."""
        [row] = await self._log.database.read(QUARANTINED_JOBS_COUNT_SQL)
        if row["count"]:
            raise JobsQuarantined(f"{row['count']} job(s) set aside; see `dreamforge jobs quarantine list`")

    async def quarantined_jobs(self) -> list[QuarantinedJob]:
        """Every job that was set aside and does not go on, the last first."""
        marks = recorded_events(await self._log.database.read(_QUARANTINE_MARKS_SQL))
        found = [_quarantined_job(list(own)) for _, own in groupby(marks, key=lambda event: event.stream_id)]
        return sorted((one for one in found if one is not None), key=lambda one: one.since, reverse=True)

    async def release_job(self, job: QuarantinedJob, *, resume: bool) -> None:
        """Let a job go on, or leave it failed for good."""
        await append_unconditionally(
            self._log, job.job_id, "job", JobReleased(resume=resume), self._actor, tenant=job.tenant
        )


def _quarantined_job(marks: Sequence[RecordedEvent]) -> QuarantinedJob | None:
    """What the marks of one job say; None if it goes on."""
    if not is_quarantined(marks):
        return None
    last = next((event for event in reversed(marks) if event.code == JobQuarantined.code), marks[-1])
    body = codec.decode_body_or_none(last)
    told = body if isinstance(body, JobQuarantined) else _UNREADABLE_MARK
    return QuarantinedJob(
        job_id=last.stream_id,
        tenant=last.tenant,
        since=last.ts,
        state="quarantined" if marks[-1].code == JobQuarantined.code else "closed",
        reader=told.reader,
        at_version=told.at_version,
        reason=told.reason,
        version=marks[-1].version,
    )


class JobsQuarantined(Exception):
    """Some jobs wait for an operator."""
