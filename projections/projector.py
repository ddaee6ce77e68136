"""Keeps the read models: fold each job's new events onto its row, one bulk upsert per table, one commit per batch."""

from collections.abc import Mapping, Sequence
from typing import Literal
from uuid import UUID

import msgspec

from eventstore import codec
from eventstore.database import Database
from eventstore.events import Fact, Recorded
from eventstore.log import Move, Moved
from projections import views
from projections.rows import Rows, artifact_rows, job_row, step_rows, text, to_view
from projections.views import JobView, evolve

Generation = Literal["readmodel", "readmodel_shadow"]
"""A build of the read model, by its schema: the one that serves, or the one that a rebuild makes."""
LIVE: Generation = "readmodel"
SHADOW: Generation = "readmodel_shadow"

_LOAD = """
select j.job_id, (select build from {schema}.generation) as build, json_build_object(
    'job', row_to_json(j),
    'steps', (select json_agg(s order by s.ordinal) from {schema}.steps s where s.job_id = j.job_id)) as rows
from {schema}.jobs j where j.job_id = any ($1::uuid[])
"""
_PROJECT = "select partition from projector.project($1, $2, $3, $4::json, $5::json, $6::json, $7::json) as partition"
_ROWS = msgspec.json.Decoder(Rows)


class Projector:
    """The handler of the subscription that keeps a generation of the read model, whose name it bears."""

    def __init__(self, database: Database, generation: Generation = LIVE) -> None:
        self.name = generation
        self._database = database
        self._load_rows = _LOAD.format(schema=generation)

    async def handle(self, events: Sequence[Recorded], moves: Sequence[Move]) -> Mapping[int, Moved] | None:
        """Write what the events change; None if they change nothing."""
        streams: dict[UUID, list[Fact]] = {}
        for event in events:
            if event.category == "job":
                streams.setdefault(event.stream_id, []).append(codec.fact(event))
        if not streams:
            return None
        build, kept = await self._load([stream for stream, facts in streams.items() if facts[0].version > 1])
        changed: list[JobView] = []
        for stream, facts in streams.items():
            view = kept.get(stream)
            for fact in facts:
                view = evolve(view, fact)
            if view is not None:
                changed.append(view)
        return await self._write(changed, moves, build)

    async def move(self, moves: Sequence[Move]) -> Mapping[int, Moved]:
        """Move checkpoints past events that concern no view."""
        return await self._write([], moves)

    async def _load(self, jobs: list[UUID]) -> tuple[UUID | None, dict[UUID, JobView]]:
        """Views without their artifacts: those of the batch's events are all that is to be written; and whose rows."""
        if not jobs:
            return None, {}
        rows = await self._database.read(self._load_rows, jobs)
        build = rows[0]["build"] if rows else None
        return build, {row["job_id"]: to_view(_ROWS.decode(row["rows"])) for row in rows}

    async def _write(
        self, changed: Sequence[JobView], moves: Sequence[Move], build: UUID | None = None
    ) -> Mapping[int, Moved]:
        rows = await self._database.call(
            _PROJECT,
            self.name,
            views.VERSION,
            build,
            text([job_row(view) for view in changed]),
            text([row for view in changed for row in step_rows(view)]),
            text([row for view in changed for row in artifact_rows(view, view.artifacts)]),
            text(moves),
        )
        ends = {move.partition: move.end for move in moves}
        return {row["partition"]: Moved("accepted", ends[row["partition"]]) for row in rows}
