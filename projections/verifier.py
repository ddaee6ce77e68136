"""Does the read model say what the log says? Each job's rows held against its history, folded as far as they go."""

from collections.abc import AsyncIterator, Mapping, Sequence
from uuid import UUID

import msgspec

from eventstore.database import Database
from eventstore.events import RecordedEvent
from eventstore.log import Log
from orchestrator.quarantine import is_set_aside
from projections.comparison import Difference, differences
from projections.job_view import JobView, of_history
from projections.projector import LIVE
from projections.rows import Rows, to_view

_PAGE = 200
_LOWEST = UUID(int=0)

_ROWS = """
select j.job_id, json_build_object('job', row_to_json(j),
    'steps', coalesce((
        select json_agg(s order by s.ordinal) from readmodel.steps s where s.job_id = j.job_id), '[]'),
    'artifacts', coalesce((
        select json_agg(a order by s.ordinal, a.item_index)
        from readmodel.artifacts a join readmodel.steps s using (step_id) where a.job_id = j.job_id), '[]')) as rows
from readmodel.jobs j where j.job_id = any ($1::uuid[])
"""
# Jobs that either side knows.
_JOBS = """
select job_id from (
    (select stream_id as job_id from eventstore.events
    where stream_id > $1 and version = 1 and category = 'job' order by stream_id limit $2)
    union
    (select job_id from readmodel.jobs where job_id > $1 order by job_id limit $2)
) as known order by job_id limit $2
"""
_ORPHANS = """
select 'step' as kind, step_id as id, job_id from readmodel.steps s
where not exists (select from readmodel.jobs j where j.job_id = s.job_id)
union all
select 'artifact', artifact_id, job_id from readmodel.artifacts a
where not exists (select from readmodel.steps s where (s.job_id, s.step_id) = (a.job_id, a.step_id))
"""
_DECODER = msgspec.json.Decoder(Rows)


class Disagreement(msgspec.Struct, frozen=True, kw_only=True):
    """Where a job's rows and its history part: before is what the log says, after what the rows say."""

    job_id: UUID
    problem: str
    differences: list[Difference] = []


class ReadModelVerifier:
    """Holds rows against the log. Every method may raise `DatabaseUnavailable`."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._log = Log(database)

    async def rows(self, jobs: Sequence[UUID]) -> dict[UUID, JobView | msgspec.MsgspecError]:
        """What the read model alone says of some jobs, artifacts included, or why that can't be read."""
        found: dict[UUID, JobView | msgspec.MsgspecError] = {}
        for row in await self._database.read(_ROWS, list(jobs)):
            try:
                found[row["job_id"]] = to_view(_DECODER.decode(row["rows"]))
            except msgspec.MsgspecError as error:
                found[row["job_id"]] = error
        return found

    async def check(self, jobs: Sequence[UUID]) -> list[Disagreement]:
        """Hold some jobs' rows against their histories. Rows may lag, as far as the projector's checkpoint does.

        What disagrees is looked at once more: a swap of the read model, or an erasure, may have come between.
        """
        suspects = [found.job_id for found in await self._check(jobs)]
        return await self._check(suspects) if suspects else []

    async def _check(self, jobs: Sequence[UUID]) -> list[Disagreement]:
        # In this order: a checkpoint is never ahead of the rows, nor the rows of the log.
        reached = await self._log.checkpoints(LIVE)
        rows = await self.rows(jobs)
        histories = await self._log.streams(jobs)
        compared = (_compare(job, rows.get(job), histories[job], reached) for job in jobs)
        return [found for found in compared if found is not None]

    async def pages(self) -> AsyncIterator[list[UUID]]:
        """Every job that the log or the read model knows, a page at a time."""
        after = _LOWEST
        while True:
            page = [row["job_id"] for row in await self._database.read(_JOBS, after, _PAGE)]
            if page:
                yield page
            if len(page) < _PAGE:
                return
            after = page[-1]

    async def orphans(self) -> list[Disagreement]:
        """Steps and artifacts that belong to nothing."""
        return [
            Disagreement(job_id=row["job_id"], problem=f"{row['kind']} {row['id']} belongs to nothing")
            for row in await self._database.read(_ORPHANS)
        ]


def _compare(
    job: UUID, row: JobView | msgspec.MsgspecError | None, history: Sequence[RecordedEvent], reached: Mapping[int, int]
) -> Disagreement | None:
    if isinstance(row, msgspec.MsgspecError):
        return Disagreement(job_id=job, problem=f"the row can't be read: {row}")
    pending_step = sum(event.position <= reached.get(event.partition, 0) for event in history)
    version = 0 if row is None else row.version
    if version < pending_step:
        kept = "there is no row" if row is None else f"the row stands at version {version}"
        return Disagreement(job_id=job, problem=f"the projector has passed version {pending_step}, and {kept}")
    if version > len(history):
        return Disagreement(
            job_id=job, problem=f"the row stands at version {version}, and the history ends at {len(history)}"
        )
    try:
        found = differences(of_history(history[:version]), row)
    except Exception as error:  # noqa: BLE001  # a fold may break in any way on what it was not written for
        return Disagreement(job_id=job, problem=f"the history can't be folded: {error!r}")
    if is_set_aside(history[:version]):  # the rest may be what can't be stored
        found = [one for one in found if one.path in {"status", "error_code"}]
    if not found:
        return None
    return Disagreement(job_id=job, problem=f"the row differs at version {version}", differences=found)
