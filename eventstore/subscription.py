"""Exactly-once subscriptions: a handler's writes and its checkpoint commit together.

A checkpoint moves by compare-and-swap in the same commit as the writes, so any number of processes may run one
subscription and be killed at any instruction. They need neither locks nor a session.
"""

import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import msgspec
import structlog

from eventstore.database import Backoff
from eventstore.errors import DatabaseUnavailable, EventRejected, EventStoreError, LogDamaged, UnknownEvent
from eventstore.events import RecordedEvent
from eventstore.log import Log, Move, Moved, expect_gapless
from eventstore.notifier import Notifier

_BATCH = 500
_RECHECK_S = 2.0
_LAZY_MOVE_S = 1.0
_LONGEST_RETRY_S = 30.0
_TRIES = 3
"""How often an event is rejected before `Handler.set_aside`."""
_REJECTED_RETRY_S = 1.0
_log = structlog.get_logger(__name__)


IsKnown = Callable[[str, int], bool]


class SubscriptionGone(EventStoreError):
    """The subscription was removed while it ran, as the end of a rebuild does."""


class Handler(Protocol):
    """What a subscription does with events."""

    @property
    def name(self) -> str:
        """The name of the subscription and of its checkpoints."""

    async def handle(self, events: Sequence[RecordedEvent], moves: Sequence[Move]) -> Mapping[int, Moved] | None:
        """React to events of some partitions, and commit the writes together with the moves.

        Answers how each move was taken. None: there was nothing to write, and nothing was committed.
        """

    async def move(self, moves: Sequence[Move]) -> Mapping[int, Moved]:
        """Commit the moves alone."""

    async def set_aside(self, rejected: EventRejected) -> bool:
        """Quarantine the stream of an event that `handle` rejected several times; False if others must."""


class PartitionCursor(msgspec.Struct):
    """One partition as a subscription sees it: the checkpoint is at `stored`, events were handled up to `read`."""

    partition: int
    stored: int
    read: int
    moved_at: float = 0.0
    retry_at: float = 0.0
    checkpoint_conflict: bool = False
    failures: int = 0
    failure: str | None = None


class Subscription:
    """Runs a handler over the log.

    is_known: whether this release can handle events of a code and schema version; the subscription stops before others.
    create: add the subscription if there is none; else `SubscriptionGone` is raised once there is none any more.
    available: is the database there? cursors: each partition's position, and why it is stalled if it is.
    """

    def __init__(
        self,
        log: Log,
        notifier: Notifier,
        handler: Handler,
        is_known: IsKnown,
        *,
        poll_s: float = 1.0,
        create: bool = True,
    ) -> None:
        self._log = log
        self._notifier = notifier
        self._handler = handler
        self._is_known = is_known
        self._poll_s = poll_s
        self._create = create
        self._rechecked_at = 0.0
        self._bind = {"subscription": handler.name}
        self.cursors: dict[int, PartitionCursor] = {}
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
                    # Unknown whether the last call was written: read the checkpoints again.
                    self.cursors.clear()
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
        if not self.cursors:
            await self._load()
        await self._recheck()
        now = time.monotonic()
        ready = {cursor.partition: cursor.read for cursor in self.cursors.values() if cursor.retry_at <= now}
        batches = await self._log.after(ready, limit=_BATCH) if ready else {}
        if batches:
            await self._handle(batches)
        await self._move_lazily()
        return bool(batches)

    async def _load(self) -> None:
        if self._create:
            await self._log.subscribe(self._handler.name)
        # A checkpoint that an earlier call moved may be on this server alone, and on no standby.
        await self._log.confirm_replicated()
        stored = await self._checkpoints()
        self.cursors = {
            partition: PartitionCursor(partition, position, position) for partition, position in stored.items()
        }

    async def _recheck(self) -> None:
        """A partition that another process took is tried again once its checkpoint stops moving.

        A checkpoint that was set back, as the swap of a rebuilt read model may do, is followed there.
        """
        now = time.monotonic()
        due = [
            cursor
            for cursor in self.cursors.values()
            if (cursor.checkpoint_conflict or cursor.failure) and cursor.retry_at <= now
        ]
        if not due and now - self._rechecked_at < _RECHECK_S:
            return
        stored = await self._checkpoints()
        self._rechecked_at = now
        for cursor in self.cursors.values():
            if stored[cursor.partition] < cursor.stored:
                cursor.stored = cursor.read = stored[cursor.partition]
        for cursor in due:
            position = stored[cursor.partition]
            if position > cursor.read:
                cursor.failures, cursor.failure = 0, None  # another process handled what this one could not
            elif cursor.failure:
                continue
            cursor.checkpoint_conflict = position != cursor.stored
            if cursor.checkpoint_conflict:
                cursor.retry_at = now + _pause()
            cursor.stored = cursor.read = position

    async def _checkpoints(self) -> dict[int, int]:
        stored = await self._log.checkpoints(self._handler.name)
        if not stored:
            raise SubscriptionGone(f"the subscription {self._handler.name} was taken away")
        return stored

    async def _handle(self, batches: Mapping[int, Sequence[RecordedEvent]]) -> None:
        events: list[RecordedEvent] = []
        moves: list[Move] = []
        for partition, batch in batches.items():
            known = self._known(self.cursors[partition], batch)
            if known:
                events.extend(known)
                moves.append(self._move(self.cursors[partition], known[-1].position))
        if not moves:
            return
        try:
            moved = await self._handler.handle(events, moves)
        except DatabaseUnavailable:
            raise
        except EventRejected as rejected:
            await self._on_rejection(rejected, batches[rejected.event.partition])
            return
        except Exception as error:  # noqa: BLE001  # a handler may raise anything; its partition waits
            if len(moves) > 1:
                # An error must stop its own partition only: handle each partition alone.
                for partition, batch in batches.items():
                    await self._handle({partition: batch})
                return
            if len(events) > 1:
                await self._halve(moves[0].partition, events)
                return
            _log.exception("subscription stalled", partition=moves[0].partition, **self._bind)
            self._stop(self.cursors[moves[0].partition], error)
            return
        self._advance(moves, moved)

    async def _halve(self, partition: int, events: Sequence[RecordedEvent]) -> None:
        """Handle the events before the one that the handler fails at, then that one alone."""
        middle = len(events) // 2
        await self._handle({partition: events[:middle]})
        if self.cursors[partition].read == events[middle].position - 1:
            await self._handle({partition: events[middle:]})

    async def _on_rejection(self, rejected: EventRejected, batch: Sequence[RecordedEvent]) -> None:
        """Handle the events before a rejected one and wait there; after enough tries, set it aside."""
        cursor = self.cursors[rejected.event.partition]
        before = [event for event in batch if event.position < rejected.event.position]
        if before:
            await self._handle({cursor.partition: before})
        if cursor.read != rejected.event.position - 1 or cursor.checkpoint_conflict:
            return  # those before it were not handled
        _log.error("event rejected", error=str(rejected), exc_info=rejected.__cause__, **self._bind)
        self._stop(cursor, rejected, longest=_REJECTED_RETRY_S)
        if cursor.failures >= _TRIES and await self._handler.set_aside(rejected):
            cursor.failures, cursor.failure, cursor.retry_at = 0, None, 0.0

    def _known(self, cursor: PartitionCursor, batch: Sequence[RecordedEvent]) -> list[RecordedEvent]:
        """The events before the first that is missing, or that this release doesn't know: it must not be skipped."""
        try:
            expect_gapless(cursor.partition, cursor.read, batch)
        except LogDamaged as error:
            _log.exception("subscription stalled", **self._bind)
            self._stop(cursor, error)
            return []
        for n, event in enumerate(batch):
            if not self._is_known(event.code, event.schema_version):
                if n == 0:
                    unknown = UnknownEvent(event.code, event.schema_version, event.partition, event.position)
                    _log.error("subscription stalled", error=str(unknown), **self._bind)
                    self._stop(cursor, unknown)
                return list(batch[:n])
        return list(batch)

    def _advance(self, moves: Sequence[Move], moved: Mapping[int, Moved] | None) -> None:
        for move in moves:
            cursor = self.cursors[move.partition]
            if moved is None:
                cursor.read = move.end
            else:
                answer = moved.get(move.partition)
                if answer is None or answer.verdict == "conflict":
                    cursor.checkpoint_conflict = True
                    cursor.retry_at = time.monotonic() + _pause()
                elif answer.verdict == "accepted":
                    cursor.stored = cursor.read = answer.position
                    cursor.moved_at = time.monotonic()
                # A rejected move: read and fold again at once, from the checkpoint.
                else:
                    cursor.read = cursor.stored
            cursor.failures, cursor.failure = 0, None

    async def _move_lazily(self) -> None:
        now = time.monotonic()
        moves = [
            self._move(cursor, cursor.read)
            for cursor in self.cursors.values()
            if cursor.read > cursor.stored and not cursor.checkpoint_conflict and now - cursor.moved_at >= _LAZY_MOVE_S
        ]
        if moves:
            self._advance(moves, await self._handler.move(moves))

    def _move(self, cursor: PartitionCursor, end: int) -> Move:
        return Move(subscription=self._handler.name, partition=cursor.partition, start=cursor.stored, end=end)

    def _stop(self, cursor: PartitionCursor, error: Exception, *, longest: float = _LONGEST_RETRY_S) -> None:
        cursor.failure = str(error) or type(error).__name__
        cursor.retry_at = time.monotonic() + min(longest, longest / 60 * 2**cursor.failures)
        cursor.failures = min(cursor.failures + 1, 10)


def _pause() -> float:
    return 2.0 + 2.0 * random.random()  # noqa: S311  # jitter, no secret
