"""Compares the read model with the log: each job's rows with its history, folded up to the rows' version."""

from collections.abc import AsyncIterator, Mapping, Sequence
from uuid import UUID

import msgspec

from eventstore.database import Database
from eventstore.events import RecordedEvent
from eventstore.log import Log
from orchestrator.quarantine import is_quarantined
from projections.comparison import Difference, view_differences
from projections.job_view import JobView, fold_history
from projections.projector import LIVE_SCHEMA
from projections.rows import JobRows, rows_to_view

_JOBS_PER_PAGE = 200
_NIL_ID = UUID(int=0)

_STORED_ROWS_SQL = """
select j.job_id, json_build_object('job', row_to_json(j),
    'steps', coalesce((
        select json_agg(s order by s.ordinal) from readmodel.steps s where s.job_id = j.job_id), '[]'),
    'artifacts', coalesce((
        select json_agg(a order by s.ordinal, a.item_index)
        from readmodel.artifacts a join readmodel.steps s using (step_id) where a.job_id = j.job_id), '[]')) as rows
from readmodel.jobs j where j.job_id = any ($1::uuid[])
"""
# The jobs of the log and of the read model.
_JOB_IDS_SQL = """
select job_id from (
    (select stream_id as job_id from eventstore.events
    where stream_id > $1 and version = 1 and category = 'job' order by stream_id limit $2)
    union
    (select job_id from readmodel.jobs where job_id > $1 order by job_id limit $2)
) as known order by job_id limit $2
"""
_ORPHANS_SQL = """
select 'step' as kind, step_id as id, job_id from readmodel.steps s
where not exists (select from readmodel.jobs j where j.job_id = s.job_id)
union all
select 'artifact', artifact_id, job_id from readmodel.artifacts a
where not exists (select from readmodel.steps s where (s.job_id, s.step_id) = (a.job_id, a.step_id))
"""
_JOB_ROWS_DECODER = msgspec.json.Decoder(JobRows)


class Disagreement(msgspec.Struct, frozen=True, kw_only=True):
    """A job's rows disagree with its history. In `differences`, before is the log's value and after the rows'."""

    job_id: UUID
    problem: str
    differences: list[Difference] = []


class ReadModelVerifier:
    """Compares rows with the log. Every method may raise `DatabaseUnavailable`."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._log = Log(database)

    async def stored_views(self, jobs: Sequence[UUID]) -> dict[UUID, JobView | msgspec.MsgspecError]:
        """The stored views of some jobs, with artifacts, or the error that decoding one raises."""
        views: dict[UUID, JobView | msgspec.MsgspecError] = {}
        for row in await self._database.read(_STORED_ROWS_SQL, list(jobs)):
            try:
                views[row["job_id"]] = rows_to_view(_JOB_ROWS_DECODER.decode(row["rows"]))
            except msgspec.MsgspecError as error:
                views[row["job_id"]] = error
        return views

    async def check_jobs(self, jobs: Sequence[UUID]) -> list[Disagreement]:
        """Compare some jobs' rows with their histories. Rows may lag as far as the projector's checkpoint does.

        Jobs that disagree are checked a second time, since a swap or an erasure may have happened between the reads.
        """
        suspects = [disagreement.job_id for disagreement in await self._compare_jobs(jobs)]
        return await self._compare_jobs(suspects) if suspects else []

    async def _compare_jobs(self, jobs: Sequence[UUID]) -> list[Disagreement]:
        # The order matters: a checkpoint is never ahead of the rows, and the rows are never ahead of the log.
        checkpoints = await self._log.checkpoints(LIVE_SCHEMA)
        rows = await self.stored_views(jobs)
        histories = await self._log.read_streams(jobs)
        compared = (_compare_job(job, rows.get(job), histories[job], checkpoints) for job in jobs)
        return [disagreement for disagreement in compared if disagreement is not None]

    async def job_id_pages(self) -> AsyncIterator[list[UUID]]:
        """The ids of all jobs of the log and of the read model, page by page."""
        after = _NIL_ID
        while True:
            page = [row["job_id"] for row in await self._database.read(_JOB_IDS_SQL, after, _JOBS_PER_PAGE)]
            if page:
                yield page
            if len(page) < _JOBS_PER_PAGE:
                return
            after = page[-1]

    async def find_orphans(self) -> list[Disagreement]:
        """Steps without a job, and artifacts without a step."""
        return [
            Disagreement(job_id=row["job_id"], problem=f"{row['kind']} {row['id']} belongs to nothing")
            for row in await self._database.read(_ORPHANS_SQL)
        ]


def _compare_job(
    job_id: UUID,
    stored_view: JobView | msgspec.MsgspecError | None,
    history: Sequence[RecordedEvent],
    checkpoints: Mapping[int, int],
) -> Disagreement | None:
    if isinstance(stored_view, msgspec.MsgspecError):
        return Disagreement(job_id=job_id, problem=f"the row can't be read: {stored_view}")
    handled_version = sum(event.position <= checkpoints.get(event.partition, 0) for event in history)
    version = 0 if stored_view is None else stored_view.version
    if version < handled_version:
        stored = "there is no row" if stored_view is None else f"the row stands at version {version}"
        return Disagreement(job_id=job_id, problem=f"the projector has passed version {handled_version}, and {stored}")
    if version > len(history):
        return Disagreement(
            job_id=job_id, problem=f"the row stands at version {version}, and the history ends at {len(history)}"
        )
    try:
        found = view_differences(fold_history(history[:version]), stored_view)
    except Exception as error:  # noqa: BLE001  # a fold may raise anything on unexpected data
        return Disagreement(job_id=job_id, problem=f"the history can't be folded: {error!r}")
    if is_quarantined(history[:version]):  # other fields may hold values that cannot be stored
        found = [difference for difference in found if difference.path in {"status", "error_code"}]
    if not found:
        return None
    return Disagreement(job_id=job_id, problem=f"the row differs at version {version}", differences=found)
