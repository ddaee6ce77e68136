"""Keeps the read models: fold each job's new events onto its row, one bulk upsert per table, one commit per batch."""

from collections.abc import Mapping, Sequence
from uuid import UUID

import msgspec

from eventstore import codec
from eventstore.database import Database
from eventstore.events import Fact, Recorded
from eventstore.log import Move, Moved
from projections.rows import Rows, artifact_rows, job_row, step_rows, text, to_view
from projections.views import JobView, evolve

_LOAD = """
select j.job_id, json_build_object(
    'job', row_to_json(j),
    'steps', (select json_agg(s order by s.ordinal) from readmodel.steps s where s.job_id = j.job_id)) as rows
from readmodel.jobs j where j.job_id = any ($1::uuid[])
"""
_PROJECT = "select partition from readmodel.project($1::json, $2::json, $3::json, $4::json) as partition"
_ROWS = msgspec.json.Decoder(Rows)


class Projector:
    """The handler of the subscription `readmodel`."""

    name = "readmodel"

    def __init__(self, database: Database) -> None:
        self._database = database

    async def handle(self, events: Sequence[Recorded], moves: Sequence[Move]) -> Mapping[int, Moved] | None:
        """Write what the events change; None if they change nothing."""
        streams: dict[UUID, list[Fact]] = {}
        for event in events:
            if event.category == "job":
                streams.setdefault(event.stream_id, []).append(codec.fact(event))
        if not streams:
            return None
        kept = await self._load([stream for stream, facts in streams.items() if facts[0].version > 1])
        views: list[JobView] = []
        for stream, facts in streams.items():
            view = kept.get(stream)
            for fact in facts:
                view = evolve(view, fact)
            if view is not None:
                views.append(view)
        return await self._write(views, moves)

    async def move(self, moves: Sequence[Move]) -> Mapping[int, Moved]:
        """Move checkpoints past events that concern no view."""
        return await self._write([], moves)

    async def _load(self, jobs: list[UUID]) -> dict[UUID, JobView]:
        """Views without their artifacts: those of the batch's events are all that is to be written."""
        if not jobs:
            return {}
        rows = await self._database.read(_LOAD, jobs)
        return {row["job_id"]: to_view(_ROWS.decode(row["rows"])) for row in rows}

    async def _write(self, views: Sequence[JobView], moves: Sequence[Move]) -> Mapping[int, Moved]:
        rows = await self._database.call(
            _PROJECT,
            text([job_row(view) for view in views]),
            text([row for view in views for row in step_rows(view)]),
            text([row for view in views for row in artifact_rows(view, view.artifacts)]),
            text(moves),
        )
        ends = {move.partition: move.end for move in moves}
        return {row["partition"]: Moved("accepted", ends[row["partition"]]) for row in rows}
