"""Queries of jobs. Reads of one job are never stale: its row and the tail of its stream are read in one snapshot.

The projector may lag or be paused: the events that it has not handled are folded onto the row here.
"""

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

import msgspec
import structlog

from eventstore.database import Database
from eventstore.events import EventRow
from eventstore.log import Log
from orchestrator import codec
from orchestrator.events import JobReleased, Status
from projections.job_view import JobView, evolve_view, fold_history
from projections.rows import JobRows, rows_to_view

# One statement uses one snapshot: every event is in the row or in the tail.
_JOB_SQL = """
with kept as (select * from readmodel.jobs where job_id = $1 and tenant = $3)
select
    (select json_build_object(
        'job', row_to_json(kept),
        'steps', coalesce((
            select json_agg(s order by s.ordinal) from readmodel.steps s where s.job_id = $1), '[]'),
        'artifacts', case when $2 then coalesce((
            select json_agg(a order by s.ordinal, a.item_index)
            from readmodel.artifacts a join readmodel.steps s using (step_id) where a.job_id = $1), '[]') end
    ) from kept) as rows,
    (select json_agg(json_build_object(
        'stream_id', e.stream_id, 'tenant', e.tenant, 'version', e.version, 'code', e.code,
        'schema_version', e.schema_version, 'ts', e.ts,
        'data', e.data::text, 'meta', e.meta::text, 'private', e.private) order by e.version)
    from eventstore.events e
    where e.stream_id = $1 and e.category = 'job' and e.tenant = $3
        and e.version > coalesce((select version from kept), 0)) as tail
"""


# Each of the two statements has its own index; schema.sql documents them.
_LIST_JOBS_SQL = """
select j.job_id, j.status, j.created_at, j.updated_at, j.count, j.params, coalesce((
    select s.completed from readmodel.steps s where s.job_id = j.job_id order by s.ordinal desc limit 1), 0
) as completed
from readmodel.jobs j
where j.tenant = $1 and {status}
    and (j.created_at, j.job_id) < (coalesce($3, 'infinity'::timestamptz), coalesce($4, $5::uuid))
order by j.created_at desc, j.job_id desc limit $6
"""
_LIST_JOBS_OF_ANY_STATUS_SQL = _LIST_JOBS_SQL.format(status="($2::text is null or j.status = $2)")
_LIST_JOBS_OF_ONE_STATUS_SQL = _LIST_JOBS_SQL.format(status="j.status <> 'succeeded' and j.status = $2")
_LARGEST_UUID = UUID(int=2**128 - 1)

_log = structlog.get_logger(__name__)
_JOB_ROWS_DECODER = msgspec.json.Decoder(JobRows)
_EVENT_ROWS_DECODER = msgspec.json.Decoder(list[EventRow])


class JobSummary(msgspec.Struct, frozen=True, kw_only=True):
    """A job in a list. completed: images that its last step has written. prompt: None if it was erased."""

    job_id: UUID
    status: Status
    created_at: datetime
    updated_at: datetime
    prompt: str | None
    count: int
    completed: int


class _StoredPrompt(msgspec.Struct):
    prompt: str | None = None


_STORED_PROMPT_DECODER = msgspec.json.Decoder(_StoredPrompt)


class JobQueries:
    """The queries of the API. Every method may raise `DatabaseUnavailable`."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._event_log = Log(database)

    async def job_view(self, tenant: str, job_id: UUID, *, artifacts: bool = False) -> JobView | None:
        """The current view of a job; None if the tenant has no such job. artifacts: include them, by step and item."""
        row = (await self._database.read(_JOB_SQL, job_id, artifacts, tenant))[0]
        tail = [] if row["tail"] is None else _EVENT_ROWS_DECODER.decode(row["tail"])
        try:
            view = None if row["rows"] is None else rows_to_view(_JOB_ROWS_DECODER.decode(row["rows"]))
        except msgspec.MsgspecError:
            _log.warning("a row can't be read", job_id=str(job_id), exc_info=True)
            view = fold_history(await self._event_log.read_stream(job_id), lenient=True)
        view = await self.fold_events_onto_view(view, tail)
        if view is None or not artifacts:
            return view
        return _sort_artifacts(view)

    async def fold_events_onto_view(self, view: JobView | None, events: Sequence[EventRow]) -> JobView | None:
        """Fold further events onto a job's view. After `job.released` or a failure, fold its whole history again.

        Events that cannot be read are skipped until the job is quarantined: a read must not fail because of them.
        """
        try:
            if all(event.code != JobReleased.code for event in events):
                for event in events:
                    view = evolve_view(view, codec.decode_event(event))
                return view
        except Exception:  # noqa: BLE001  # a fold may raise anything on unexpected data
            _log.warning("a history can't be folded", job_id=str(events[0].stream_id), exc_info=True)
        history = await self._event_log.read_stream(events[0].stream_id, limit=events[-1].version)
        return fold_history(history, lenient=True)

    async def list_jobs(
        self, tenant: str, *, status: Status | None, older_than: tuple[datetime, UUID] | None, limit: int
    ) -> Sequence[JobSummary]:
        """Jobs by (created_at, id), newest first, from the read model. before: only jobs older than this one."""
        statement = _LIST_JOBS_OF_ANY_STATUS_SQL if status in {None, "succeeded"} else _LIST_JOBS_OF_ONE_STATUS_SQL
        created_at, job_id = older_than or (None, None)
        rows = await self._database.read(statement, tenant, status, created_at, job_id, _LARGEST_UUID, limit)
        # PostgreSQL cannot parse params with U+0000, which a rebuild may have copied.
        return [
            JobSummary(
                prompt=_STORED_PROMPT_DECODER.decode(row["params"]).prompt,
                **{k: v for k, v in row.items() if k != "params"},
            )
            for row in rows
        ]


def _sort_artifacts(view: JobView) -> JobView:
    """Sort a view's artifacts by step and item. Drops artifacts of unknown steps, as the SQL statement does."""
    order = {step.step_id: n for n, step in enumerate(view.steps)}
    known = (artifact for artifact in view.artifacts if artifact.step_id in order)
    ordered = sorted(known, key=lambda artifact: (order[artifact.step_id], artifact.item_index))
    return msgspec.structs.replace(view, artifacts=tuple(ordered))
