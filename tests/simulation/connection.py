"""Simulated counterparts of `Log` and `Committer`, in which every call is an effect."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, cast
from uuid import UUID

from eventstore.committer import Committer, Transition
from eventstore.errors import DatabaseUnavailable
from eventstore.events import RecordedEvent
from eventstore.log import Ack, AppendOutcome, Batch, BatchOutcome, Defer, Log
from orchestrator.service import JobService
from tests.simulation.effects import Effect
from tests.simulation.storage import PARTITIONS, Storage

Clock = Callable[[], float]
_BATCH = 4
"""Events of a partition that are read at once: few, so that batches end at many different positions."""


class SimulatedLog:
    """A counterpart of `Log`. repeats: failed calls are repeated until they succeed, instead of raising."""

    def __init__(self, storage: Storage, clock: Clock, *, repeats: bool) -> None:
        self._storage = storage
        self._clock = clock
        self._failure = None if repeats else DatabaseUnavailable("simulated")

    def commit(self, batch: Batch) -> Effect[BatchOutcome]:
        """As `Log.commit`."""
        return Effect("commit", lambda: self._storage.commit(batch, self._clock()), failure=self._failure)

    def confirm_replicated(self) -> Effect[None]:
        """As `Log.confirm_replicated`: the one simulated server has no standby."""
        return Effect("confirm", lambda: None, failure=self._failure)

    def read_stream(self, stream: UUID) -> Effect[list[RecordedEvent]]:
        """As `Log.read_stream`."""
        return Effect("fold", lambda: list(self._storage.streams.get(stream, ())), failure=self._failure)

    def read_streams(self, streams: Sequence[UUID]) -> Effect[dict[UUID, list[RecordedEvent]]]:
        """As `Log.read_streams`."""
        return Effect(
            "fold", lambda: {stream: list(self._storage.streams[stream]) for stream in streams}, failure=self._failure
        )

    def read_after(self, cursor: Mapping[int, int], *, limit: int) -> Effect[dict[int, list[RecordedEvent]]]:
        """As `Log.read_after`."""
        return Effect("read", partial(self._storage.after, cursor, min(limit, _BATCH)), failure=self._failure)

    def subscribe(self, subscription: str) -> Effect[Any]:
        """As `Log.subscribe`."""
        checkpoints = self._storage.checkpoints
        return Effect(
            "subscribe", lambda: checkpoints.setdefault(subscription, [0] * PARTITIONS), failure=self._failure
        )

    def checkpoints(self, subscription: str) -> Effect[dict[int, int]]:
        """As `Log.checkpoints`."""
        checkpoints = self._storage.checkpoints
        return Effect("checkpoints", lambda: dict(enumerate(checkpoints[subscription])), failure=self._failure)


class SimulatedCommitter:
    """A counterpart of `Committer`."""

    def __init__(self, storage: Storage, clock: Clock) -> None:
        self._repeating_log = SimulatedLog(storage, clock, repeats=True)
        self._log = SimulatedLog(storage, clock, repeats=False)

    async def commit(self, transition: Transition) -> AppendOutcome:
        """As `Committer.commit`, which repeats until it has a result."""
        return (await self._repeating_log.commit(batch_of(transition))).streams[transition.append.stream]

    async def commit_batch(self, batch: Batch) -> BatchOutcome:
        """As `Committer.commit_batch`, which does not repeat."""
        return await self._log.commit(batch)


def batch_of(transition: Transition) -> Batch:
    """A transition as the committer sends it."""
    return Batch(
        appends=[transition.append],
        acks=[transition.settle] if type(transition.settle) is Ack else [],
        defers=[transition.settle] if type(transition.settle) is Defer else [],
    )


def jobs(storage: Storage, committer: SimulatedCommitter, clock: Clock, actor: str) -> JobService:
    """The service's `JobService` on the simulated log and committer."""
    log = SimulatedLog(storage, clock, repeats=True)
    return JobService(cast("Log", log), cast("Committer", committer), actor)
