"""A process that runs the service's own subscription, and a handler that maintains the read model."""

from collections.abc import Mapping, Sequence
from typing import cast
from uuid import UUID

from eventstore.errors import DatabaseUnavailable, EventRejected
from eventstore.events import RecordedEvent
from eventstore.log import CheckpointMove, CheckpointMoveOutcome, Log
from eventstore.notifier import Notifier
from eventstore.subscription import Handler, PartitionCursor, Subscription
from orchestrator import codec
from orchestrator.events import DecodedEvent
from projections.job_view import JobView, evolve_view
from tests.simulation.connection import SimulatedLog
from tests.simulation.effects import Actor, Effect
from tests.simulation.process import Process
from tests.simulation.world import World


class Subscriber(Process):
    """Runs a handler over the log, one effect at a time."""

    def __init__(self, world: World, name: str, handler: Handler) -> None:
        super().__init__(world, name)
        self._handler = handler
        self._log = SimulatedLog(world.storage, world.clock, repeats=False)
        self._subscription = self._new()
        self._actor: Actor | None = None

    @property
    def idle(self) -> bool:
        """Whether it waits for new events."""
        return self._actor is None and not self._due()

    @property
    def failures(self) -> list[str]:
        """Why partitions are stalled."""
        return [cursor.failure for cursor in self._subscription.cursors.values() if cursor.failure is not None]

    def crash(self) -> None:
        """Crash, and restart from the checkpoints."""
        if self._actor is not None:
            self._actor.crash()
        self._actor = None
        self._subscription = self._new()

    def _new(self) -> Subscription:
        return Subscription(cast("Log", self._log), cast("Notifier", None), self._handler, codec.is_known)

    def _step(self) -> bool:
        if self._actor is None:
            if not self._due() and not self.world.chance(0.002):
                return False
            self._actor = Actor(self._subscription.poll_once())
        try:
            self.advance(self._actor, self._handler.name)
        except DatabaseUnavailable:
            # As `Subscription.run`: whether the last call was written is unknown.
            self._subscription.cursors.clear()
            self._actor = None
        else:
            if self._actor.done:
                self._actor = None
        return True

    def _due(self) -> bool:
        cursors = self._subscription.cursors.values()
        return not cursors or any(self._is_due(cursor) for cursor in cursors)

    def _is_due(self, cursor: PartitionCursor) -> bool:
        if cursor.retry_at > self.world.now:
            return False
        behind = len(self.world.storage.partitions[cursor.partition]) > cursor.handled_position
        lazy = cursor.handled_position > cursor.checkpoint and self.world.now - cursor.moved_at >= 1.0
        return behind or lazy or cursor.checkpoint_conflict


class ReadModel:
    """A counterpart of `projections.projector`; `Storage.project` replaces its SQL."""

    name = "readmodel"

    def __init__(self, world: World) -> None:
        self._storage = world.storage

    async def handle(
        self, events: Sequence[RecordedEvent], moves: Sequence[CheckpointMove]
    ) -> Mapping[int, CheckpointMoveOutcome] | None:
        """As `Projector.handle`."""
        streams: dict[UUID, list[DecodedEvent]] = {}
        for event in events:
            streams.setdefault(event.stream_id, []).append(codec.decode_event(event))
        kept = await self._load()
        views: list[JobView] = []
        for stream, history in streams.items():
            view = kept.get(stream) if history[0].version > 1 else None
            for one in history:
                view = evolve_view(view, one)
            if view is not None:
                views.append(view)
        return await self._write(views, moves)

    async def quarantine(self, rejected: EventRejected) -> bool:
        """Never called: all simulated events are readable."""
        raise AssertionError(rejected)

    async def commit_moves(self, moves: Sequence[CheckpointMove]) -> Mapping[int, CheckpointMoveOutcome]:
        """As `Projector.move`."""
        return await self._write([], moves)

    def _load(self) -> Effect[dict[UUID, JobView]]:
        return Effect("load", lambda: dict(self._storage.views), failure=DatabaseUnavailable("simulated"))

    async def _write(
        self, views: Sequence[JobView], moves: Sequence[CheckpointMove]
    ) -> Mapping[int, CheckpointMoveOutcome]:
        held = await Effect(
            "project", lambda: self._storage.project(views, moves), failure=DatabaseUnavailable("simulated")
        )
        return {move.partition: CheckpointMoveOutcome("accepted", move.end) for move in moves if move.partition in held}
