"""At every fact exactly once: read after the checkpoints, let a handler react, commit writes and moves together.

The move is a compare-and-swap in the writes' own commit, so any number of processes may run one subscription, be
killed at any instruction, and need neither locks nor a session.
"""

import random
import time
from collections.abc import Mapping, Sequence
from typing import Protocol

import msgspec
import structlog

from eventstore import codec
from eventstore.database import Backoff
from eventstore.errors import DatabaseUnavailable, EventStoreError, LogDamaged, Rejected, UnknownEvent
from eventstore.events import Recorded
from eventstore.log import Log, Move, Moved, expect_gapless
from eventstore.notifier import Notifier

_BATCH = 500
_LOOK_S = 2.0
_LAZY_MOVE_S = 1.0
_LONGEST_REST_S = 30.0
_TRIES = 3
"""How often an event is rejected before it is set aside."""
_REJECTED_REST_S = 1.0
_log = structlog.get_logger(__name__)


class SubscriptionGone(EventStoreError):
    """Somebody took a subscription away while it ran, as the end of a rebuild does."""


class Handler(Protocol):
    """What a subscription does with events."""

    @property
    def name(self) -> str:
        """The subscription's name; its checkpoints bear it."""

    async def handle(self, events: Sequence[Recorded], moves: Sequence[Move]) -> Mapping[int, Moved] | None:
        """React to events of some partitions, and commit the writes together with the moves.

        Answers how each move was taken. None: there was nothing to write, and nothing was committed.
        """

    async def move(self, moves: Sequence[Move]) -> Mapping[int, Moved]:
        """Commit the moves alone."""

    async def set_aside(self, rejected: Rejected) -> bool:
        """Get an event out of the way that `handle` has rejected several times; False if it must wait for others."""


class Lane(msgspec.Struct):
    """One partition as a subscription sees it: the checkpoint is at `stored`, events were handled up to `read`."""

    partition: int
    stored: int
    read: int
    moved_at: float = 0.0
    rest_until: float = 0.0
    overtaken: bool = False
    failures: int = 0
    failure: str | None = None


class Subscription:
    """Runs a handler over the log.

    create: add the subscription if there is none; else `SubscriptionGone` is raised once there is none any more.
    available: is the database there? lanes: where each partition stands, and why it stands still if it does.
    """

    def __init__(
        self, log: Log, notifier: Notifier, handler: Handler, *, poll_s: float = 1.0, create: bool = True
    ) -> None:
        self._log = log
        self._notifier = notifier
        self._handler = handler
        self._poll_s = poll_s
        self._create = create
        self._looked_at = 0.0
        self._bind = {"subscription": handler.name}
        self.lanes: dict[int, Lane] = {}
        self.available = False

    async def run(self) -> None:
        """Follow the log until cancelled."""
        wake_signal = self._notifier.wake_signal()
        backoff = Backoff()
        try:
            while True:
                try:
                    busy = await self.step()
                except DatabaseUnavailable as error:
                    if backoff.failures == 0:
                        _log.warning("subscription waits for the database", error=str(error), **self._bind)
                    self.available = False
                    # Whether the last call was written is unknown: the checkpoints know.
                    self.lanes.clear()
                    await backoff.wait()
                    continue
                self.available = True
                backoff.reset()
                if not busy:
                    await wake_signal.wait(self._poll_s)
        finally:
            self._notifier.remove(wake_signal)

    async def step(self) -> bool:
        """Read and handle once. Answers whether there may be more to do at once."""
        if not self.lanes:
            await self._load()
        await self._look_again()
        now = time.monotonic()
        ready = {lane.partition: lane.read for lane in self.lanes.values() if lane.rest_until <= now}
        batches = await self._log.after(ready, limit=_BATCH) if ready else {}
        if batches:
            await self._handle(batches)
        await self._move_lazily()
        return bool(batches)

    async def _load(self) -> None:
        if self._create:
            await self._log.subscribe(self._handler.name)
        # A checkpoint that an earlier call moved may be on this server alone: nothing is built on it before.
        await self._log.confirm_replicated()
        stored = await self._checkpoints()
        self.lanes = {partition: Lane(partition, position, position) for partition, position in stored.items()}

    async def _look_again(self) -> None:
        """A partition that another process took is tried again once its checkpoint stands still.

        One that was set back, as the swap of a rebuilt read model may do, is taken up there.
        """
        now = time.monotonic()
        due = [lane for lane in self.lanes.values() if (lane.overtaken or lane.failure) and lane.rest_until <= now]
        if not due and now - self._looked_at < _LOOK_S:
            return
        stored = await self._checkpoints()
        self._looked_at = now
        for lane in self.lanes.values():
            if stored[lane.partition] < lane.stored:
                lane.stored = lane.read = stored[lane.partition]
        for lane in due:
            position = stored[lane.partition]
            if position > lane.read:
                lane.failures, lane.failure = 0, None  # another process got past what this one could not
            elif lane.failure:
                continue
            lane.overtaken = position != lane.stored
            if lane.overtaken:
                lane.rest_until = now + _pause()
            lane.stored = lane.read = position

    async def _checkpoints(self) -> dict[int, int]:
        stored = await self._log.checkpoints(self._handler.name)
        if not stored:
            raise SubscriptionGone(f"the subscription {self._handler.name} was taken away")
        return stored

    async def _handle(self, batches: Mapping[int, Sequence[Recorded]]) -> None:
        events: list[Recorded] = []
        moves: list[Move] = []
        for partition, batch in batches.items():
            known = self._known(self.lanes[partition], batch)
            if known:
                events.extend(known)
                moves.append(self._move(self.lanes[partition], known[-1].position))
        if not moves:
            return
        try:
            moved = await self._handler.handle(events, moves)
        except DatabaseUnavailable:
            raise
        except Rejected as rejected:
            await self._rejected(rejected, batches[rejected.event.partition])
            return
        except Exception as error:  # noqa: BLE001  # a handler may break in any way; its partition waits
            if len(moves) > 1:
                # One partition's trouble must stop that partition alone: take each by itself.
                for partition, batch in batches.items():
                    await self._handle({partition: batch})
                return
            if len(events) > 1:
                await self._halve(moves[0].partition, events)
                return
            _log.exception("subscription stands still", partition=moves[0].partition, **self._bind)
            self._stop(self.lanes[moves[0].partition], error)
            return
        self._advance(moves, moved)

    async def _halve(self, partition: int, events: Sequence[Recorded]) -> None:
        """Go up to the event that breaks the handler, so that the handler is asked about that one alone."""
        middle = len(events) // 2
        await self._handle({partition: events[:middle]})
        if self.lanes[partition].read == events[middle].position - 1:
            await self._handle({partition: events[middle:]})

    async def _rejected(self, rejected: Rejected, batch: Sequence[Recorded]) -> None:
        """Go up to a rejected event and wait there; once it was tried often enough, have it set aside."""
        lane = self.lanes[rejected.event.partition]
        before = [event for event in batch if event.position < rejected.event.position]
        if before:
            await self._handle({lane.partition: before})
        if lane.read != rejected.event.position - 1 or lane.overtaken:
            return  # something else came first
        _log.error("event rejected", error=str(rejected), exc_info=rejected.__cause__, **self._bind)
        self._stop(lane, rejected, longest=_REJECTED_REST_S)
        if lane.failures >= _TRIES and await self._handler.set_aside(rejected):
            lane.failures, lane.failure, lane.rest_until = 0, None, 0.0

    def _known(self, lane: Lane, batch: Sequence[Recorded]) -> list[Recorded]:
        """The events before the first that is missing, or that this release doesn't know: it must not be skipped."""
        try:
            expect_gapless(lane.partition, lane.read, batch)
        except LogDamaged as error:
            _log.exception("subscription stands still", **self._bind)
            self._stop(lane, error)
            return []
        for n, event in enumerate(batch):
            if not codec.is_known(event.code, event.schema_version):
                if n == 0:
                    unknown = UnknownEvent(event.code, event.schema_version, event.partition, event.position)
                    _log.error("subscription stands still", error=str(unknown), **self._bind)
                    self._stop(lane, unknown)
                return list(batch[:n])
        return list(batch)

    def _advance(self, moves: Sequence[Move], moved: Mapping[int, Moved] | None) -> None:
        for move in moves:
            lane = self.lanes[move.partition]
            if moved is None:
                lane.read = move.end
            else:
                answer = moved.get(move.partition)
                if answer is None or answer.verdict == "conflict":
                    lane.overtaken = True
                    lane.rest_until = time.monotonic() + _pause()
                elif answer.verdict == "accepted":
                    lane.stored = lane.read = answer.position
                    lane.moved_at = time.monotonic()
                # A refused one is read and folded again at once, from where it stands.
                else:
                    lane.read = lane.stored
            lane.failures, lane.failure = 0, None

    async def _move_lazily(self) -> None:
        now = time.monotonic()
        moves = [
            self._move(lane, lane.read)
            for lane in self.lanes.values()
            if lane.read > lane.stored and not lane.overtaken and now - lane.moved_at >= _LAZY_MOVE_S
        ]
        if moves:
            self._advance(moves, await self._handler.move(moves))

    def _move(self, lane: Lane, end: int) -> Move:
        return Move(subscription=self._handler.name, partition=lane.partition, start=lane.stored, end=end)

    def _stop(self, lane: Lane, error: Exception, *, longest: float = _LONGEST_REST_S) -> None:
        lane.failure = str(error) or type(error).__name__
        lane.rest_until = time.monotonic() + min(longest, longest / 60 * 2**lane.failures)
        lane.failures = min(lane.failures + 1, 10)


def _pause() -> float:
    return 2.0 + 2.0 * random.random()  # noqa: S311  # jitter, no secret
