"""Maintains the read model: folds new events onto the jobs' rows, with one bulk upsert per table and one commit."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Literal
from uuid import UUID

import msgspec

from eventstore.database import UNSTORABLE_VALUE_ERRORS, Database
from eventstore.errors import DatabaseUnavailable, EventRejected
from eventstore.events import RecordedEvent
from eventstore.log import CheckpointMove, CheckpointMoveOutcome, Log
from orchestrator import codec
from orchestrator.events import JobReleased
from orchestrator.quarantine import is_quarantined
from projections import job_view
from projections.job_view import JobView, evolve_view, fold_history
from projections.rows import JobRows, artifact_rows, job_row, rows_to_json, rows_to_view, step_rows

ReadModelSchema = Literal["readmodel", "readmodel_shadow"]
"""The schema of the generation that serves, or of the one that a rebuild fills. Also the subscription's name."""
LIVE_SCHEMA: ReadModelSchema = "readmodel"
SHADOW_SCHEMA: ReadModelSchema = "readmodel_shadow"

_LOAD_VIEWS_SQL = """
select j.job_id, (select build from {schema}.generation) as build, json_build_object(
    'job', row_to_json(j),
    'steps', coalesce((
        select json_agg(s order by s.ordinal) from {schema}.steps s where s.job_id = j.job_id), '[]')) as rows
from {schema}.jobs j where j.job_id = any ($1::uuid[])
"""
_WRITE_VIEWS_SQL = (
    "select partition from projector.project($1, $2, $3, $4::json, $5::json, $6::json, $7::json) as partition"
)
_JOB_ROWS_DECODER = msgspec.json.Decoder(JobRows)


class Projector:
    """The handler of the subscription that maintains a generation of the read model."""

    def __init__(self, database: Database, schema: ReadModelSchema = LIVE_SCHEMA) -> None:
        self.name = schema
        self._database = database
        self._log = Log(database)
        self._load_rows = _LOAD_VIEWS_SQL.format(schema=schema)

    async def handle(
        self, events: Sequence[RecordedEvent], moves: Sequence[CheckpointMove]
    ) -> Mapping[int, CheckpointMoveOutcome] | None:
        """Write the changes of the events and the checkpoint moves; None if there is nothing to write."""
        streams: dict[UUID, list[RecordedEvent]] = {}
        for event in events:
            if event.category == "job":
                streams.setdefault(event.stream_id, []).append(event)
        if not streams:
            return None
        build, views = await self._load_views([stream for stream, new in streams.items() if new[0].version > 1])
        changed: list[JobView] = []
        for stream, new in streams.items():
            view = await self._fold_events_onto_view(views.get(stream), new)
            if view is not None:
                changed.append(view)
        try:
            return await self._write_views(changed, moves, build)
        except UNSTORABLE_VALUE_ERRORS as error:
            if len(events) > 1:
                raise  # the subscription retries with fewer events
            minimal = await self._minimal_views(views.get(events[0].stream_id), events[0], error)
            return await self._write_views(minimal, moves, build)

    async def _minimal_views(self, view: JobView | None, event: RecordedEvent, error: Exception) -> list[JobView]:
        """The view of a quarantined job without the values that cannot be stored.

        view: the one that is stored. Raises `EventRejected` if the job is not quarantined.
        """
        history = await self._log.read_stream(event.stream_id)
        if not is_quarantined(history):
            raise EventRejected(event, error) from error
        newest = fold_history(history)
        return [] if newest is None else [job_view.minimal_view(newest, view)]

    async def _fold_events_onto_view(self, view: JobView | None, new_events: Sequence[RecordedEvent]) -> JobView | None:
        """Fold new events onto a view. After `job.released` the whole history is folded again.

        Raises `EventRejected` if an event cannot be read, unless the job has been quarantined since.
        """
        try:
            if all(event.code != JobReleased.code for event in new_events):
                for event in new_events:
                    view = evolve_view(view, codec.decode_event(event))
                return view
            return fold_history(await self._log.read_stream(new_events[0].stream_id))
        except DatabaseUnavailable:
            raise
        except Exception as error:  # a fold may raise anything on unexpected data
            history = await self._log.read_stream(new_events[0].stream_id)
            if not is_quarantined(history):
                raise EventRejected(new_events[0], error) from error
            return fold_history(history)

    async def quarantine(self, rejected: EventRejected) -> bool:
        """Report the event to the orchestrator, which quarantines the job. Until then, the partition waits."""
        event = rejected.event
        await self._log.report_rejection(event.stream_id, self.name, event.version, rejected.reason)
        return False

    async def commit_moves(self, moves: Sequence[CheckpointMove]) -> Mapping[int, CheckpointMoveOutcome]:
        """Move checkpoints past events that change no view."""
        return await self._write_views([], moves)

    async def _load_views(self, job_ids: list[UUID]) -> tuple[UUID | None, dict[UUID, JobView]]:
        """The generation's build id and the stored views, without artifacts: only new artifacts are written."""
        if not job_ids:
            return None, {}
        rows = await self._database.read(self._load_rows, job_ids)
        build = rows[0]["build"] if rows else None
        views = {}
        for row in rows:
            with suppress(msgspec.MsgspecError):  # a missing view causes a version gap, and so a rejected event
                views[row["job_id"]] = rows_to_view(_JOB_ROWS_DECODER.decode(row["rows"]))
        return build, views

    async def _write_views(
        self, changed_views: Sequence[JobView], moves: Sequence[CheckpointMove], build_id: UUID | None = None
    ) -> Mapping[int, CheckpointMoveOutcome]:
        rows = await self._database.execute_once(
            _WRITE_VIEWS_SQL,
            self.name,
            job_view.VIEWS_VERSION,
            build_id,
            rows_to_json([job_row(view) for view in changed_views]),
            rows_to_json([row for view in changed_views for row in step_rows(view)]),
            rows_to_json([row for view in changed_views for row in artifact_rows(view, view.artifacts)]),
            rows_to_json(moves),
        )
        ends = {move.partition: move.end for move in moves}
        return {row["partition"]: CheckpointMoveOutcome("accepted", ends[row["partition"]]) for row in rows}
