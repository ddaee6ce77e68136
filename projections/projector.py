"""Keeps the read models: fold each job's new events onto its row, one bulk upsert per table, one commit per batch."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Literal
from uuid import UUID

import msgspec

from eventstore.database import UNSTORABLE_ERRORS, Database
from eventstore.errors import DatabaseUnavailable, Rejected
from eventstore.events import RecordedEvent
from eventstore.log import Log, Move, Moved
from orchestrator import codec
from orchestrator.events.jobs import JobReleased
from orchestrator.quarantine import is_set_aside
from projections import job_view
from projections.job_view import JobView, evolve, of_history
from projections.rows import Rows, artifact_rows, job_row, step_rows, text, to_view

Generation = Literal["readmodel", "readmodel_shadow"]
"""A build of the read model, by its schema: the one that serves, or the one that a rebuild makes."""
LIVE: Generation = "readmodel"
SHADOW: Generation = "readmodel_shadow"

_LOAD = """
select j.job_id, (select build from {schema}.generation) as build, json_build_object(
    'job', row_to_json(j),
    'steps', coalesce((
        select json_agg(s order by s.ordinal) from {schema}.steps s where s.job_id = j.job_id), '[]')) as rows
from {schema}.jobs j where j.job_id = any ($1::uuid[])
"""
_PROJECT = "select partition from projector.project($1, $2, $3, $4::json, $5::json, $6::json, $7::json) as partition"
_ROWS = msgspec.json.Decoder(Rows)


class Projector:
    """The handler of the subscription that keeps a generation of the read model, whose name it bears."""

    def __init__(self, database: Database, generation: Generation = LIVE) -> None:
        self.name = generation
        self._database = database
        self._log = Log(database)
        self._load_rows = _LOAD.format(schema=generation)

    async def handle(self, events: Sequence[RecordedEvent], moves: Sequence[Move]) -> Mapping[int, Moved] | None:
        """Write what the events change; None if they change nothing."""
        streams: dict[UUID, list[RecordedEvent]] = {}
        for event in events:
            if event.category == "job":
                streams.setdefault(event.stream_id, []).append(event)
        if not streams:
            return None
        build, kept = await self._load([stream for stream, new in streams.items() if new[0].version > 1])
        changed: list[JobView] = []
        for stream, new in streams.items():
            view = await self._evolved(kept.get(stream), new)
            if view is not None:
                changed.append(view)
        try:
            return await self._write(changed, moves, build)
        except UNSTORABLE_ERRORS as error:
            if len(events) > 1:
                raise  # the subscription asks again, about fewer
            least = await self._least(kept.get(events[0].stream_id), events[0], error)
            return await self._write(least, moves, build)

    async def _least(self, seen: JobView | None, event: RecordedEvent, error: Exception) -> list[JobView]:
        """What can be written of a job that is set aside. Raises `Rejected` for one that is not."""
        history = await self._log.stream(event.stream_id)
        if not is_set_aside(history):
            raise Rejected(event, error) from error
        view = of_history(history)
        return [] if view is None else [job_view.least(view, seen)]

    async def _evolved(self, seen: JobView | None, new: Sequence[RecordedEvent]) -> JobView | None:
        """A view after more events; folded anew from the whole history where one by one won't do.

        Raises `Rejected` for what can't be read, unless the job is set aside by now.
        """
        try:
            if all(event.code != JobReleased.code for event in new):
                for event in new:
                    seen = evolve(seen, codec.decode_event(event))
                return seen
            return of_history(await self._log.stream(new[0].stream_id))
        except DatabaseUnavailable:
            raise
        except Exception as error:  # a fold may break in any way on what it was not written for
            history = await self._log.stream(new[0].stream_id)
            if not is_set_aside(history):
                raise Rejected(new[0], error) from error
            return of_history(history)

    async def set_aside(self, rejected: Rejected) -> bool:
        """Tell the orchestrator, which alone sets jobs aside; until it has, the partition waits."""
        event = rejected.event
        await self._log.report_rejection(event.stream_id, self.name, event.version, rejected.reason)
        return False

    async def move(self, moves: Sequence[Move]) -> Mapping[int, Moved]:
        """Move checkpoints past events that concern no view."""
        return await self._write([], moves)

    async def _load(self, jobs: list[UUID]) -> tuple[UUID | None, dict[UUID, JobView]]:
        """Views without their artifacts: those of the batch's events are all that is to be written; and whose rows."""
        if not jobs:
            return None, {}
        rows = await self._database.read(self._load_rows, jobs)
        build = rows[0]["build"] if rows else None
        kept = {}
        for row in rows:
            with suppress(msgspec.MsgspecError):  # as if it were not there: a gap, and so rejected
                kept[row["job_id"]] = to_view(_ROWS.decode(row["rows"]))
        return build, kept

    async def _write(
        self, changed: Sequence[JobView], moves: Sequence[Move], build: UUID | None = None
    ) -> Mapping[int, Moved]:
        rows = await self._database.call(
            _PROJECT,
            self.name,
            job_view.VERSION,
            build,
            text([job_row(view) for view in changed]),
            text([row for view in changed for row in step_rows(view)]),
            text([row for view in changed for row in artifact_rows(view, view.artifacts)]),
            text(moves),
        )
        ends = {move.partition: move.end for move in moves}
        return {row["partition"]: Moved("accepted", ends[row["partition"]]) for row in rows}
