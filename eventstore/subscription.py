"""Exactly-once subscriptions: a handler's writes and its checkpoint commit together.

A checkpoint moves by compare-and-swap in the same commit as the writes, so any number of processes may run one
subscription and be killed at any instruction. They need neither locks nor a session.
"""

import random
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Protocol

import msgspec
import structlog

from eventstore.database import Backoff
from eventstore.errors import DatabaseUnavailable, EventRejected, EventStoreError, LogDamaged, UnknownEvent
from eventstore.events import RecordedEvent
from eventstore.log import CheckpointMove, CheckpointMoveOutcome, Log, expect_gapless
from eventstore.notifier import BUSY_GATHER_S, LOG_CHANNEL, Notifier, WakeSignal

_BATCH_SIZE = 500
_RECHECK_INTERVAL_S = 2.0
_LAZY_MOVE_INTERVAL_S = 1.0
_MAX_RETRY_DELAY_S = 30.0
_TRIES_BEFORE_QUARANTINE = 3
"""How often an event is rejected before `Handler.quarantine`."""
_MAX_REJECTED_RETRY_DELAY_S = 1.0
_log = structlog.get_logger(__name__)


IsKnown = Callable[[str, int], bool]


class SubscriptionGone(EventStoreError):
    """The subscription was removed while it ran, as the end of a rebuild does."""


class Handler(Protocol):
    """What a subscription does with events."""

    @property
    def name(self) -> str:
        """The name of the subscription and of its checkpoints."""

    async def handle(
        self, events: Sequence[RecordedEvent], moves: Sequence[CheckpointMove]
    ) -> Mapping[int, CheckpointMoveOutcome] | None:
        """React to events of some partitions, and commit the writes together with the moves.

        Answers how each move was taken. None: there was nothing to write, and nothing was committed.
        """

    async def commit_moves(self, moves: Sequence[CheckpointMove]) -> Mapping[int, CheckpointMoveOutcome]:
        """Commit the moves alone."""

    async def quarantine(self, rejected: EventRejected) -> bool:
        """Quarantine the stream of an event that `handle` rejected several times; False if others must."""


class EventSource(Protocol):
    """Where the subscriptions of a process read, if they share a reader: its tailer."""

    def follow(self, stream: None) -> AbstractAsyncContextManager[WakeSignal]:
        """A signal that wakes whenever the log has grown, or may have."""

    async def read_after(self, positions: Mapping[int, int], *, limit: int) -> dict[int, list[RecordedEvent]]:
        """At most `limit` events of each partition after its position, in order."""

    def forget(self) -> None:
        """Forget what was read, since the server may be another one."""


class PartitionCursor(msgspec.Struct):
    """One partition as a subscription sees it: its checkpoint, and up to where events were handled."""

    partition: int
    checkpoint: int
    handled_position: int
    moved_at: float = 0.0
    retry_at: float = 0.0
    checkpoint_conflict: bool = False
    failures: int = 0
    failure: str | None = None


class Subscription:
    """Runs a handler over the log.

    is_known: whether this release can handle events of a code and schema version; the subscription stops before others.
    create: add the subscription if there is none; else `SubscriptionGone` is raised once there is none any more.
    gather_s: how long to wait for more events after a notification, so that fewer turns handle them. source: where to
    read the events; if not given, they are read from the log, for this subscription alone.
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
        gather_s: float = 0.0,
        create: bool = True,
        source: EventSource | None = None,
    ) -> None:
        self._log = log
        self._source = source or _LogReader(log, notifier)
        self._handler = handler
        self._is_known = is_known
        self._poll_s = poll_s
        self._gather_s = gather_s
        # A shared reader has gathered already.
        self._busy_gather_s = BUSY_GATHER_S if source is None else 0.0
        self._create = create
        self._rechecked_at = 0.0
        self._served_several_streams = False
        self._bind = {"subscription": handler.name}
        self.cursors: dict[int, PartitionCursor] = {}
        self.available = False

    async def run(self) -> None:
        """Follow the log until cancelled."""
        backoff = Backoff()
        async with self._source.follow(None) as wake_signal:
            while True:
                try:
                    busy = await self.poll_once()
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
                    busy_gather_s = self._busy_gather_s if self._served_several_streams else 0.0
                    await wake_signal.wait(self._poll_s, gather_s=max(self._gather_s, busy_gather_s))

    async def poll_once(self) -> bool:
        """Read and handle once. Answers whether there may be more to do at once."""
        if not self.cursors:
            await self._load_checkpoints()
        await self._recheck_stalled_partitions()
        now = time.monotonic()
        ready = {
            cursor.partition: cursor.handled_position for cursor in self.cursors.values() if cursor.retry_at <= now
        }
        batches = await self._source.read_after(ready, limit=_BATCH_SIZE) if ready else {}
        self._served_several_streams = len({event.stream_id for batch in batches.values() for event in batch}) > 1
        if batches:
            await self._handle_batches(batches)
        await self._commit_lazy_moves()
        return any(self._may_continue(partition, batch) for partition, batch in batches.items())

    def _may_continue(self, partition: int, batch: Sequence[RecordedEvent]) -> bool:
        """Whether a partition may have more events, or has some of a batch left that can be handled at once."""
        cursor = self.cursors[partition]
        is_left = cursor.handled_position < batch[-1].position and cursor.retry_at <= time.monotonic()
        return is_left or len(batch) == _BATCH_SIZE

    async def _load_checkpoints(self) -> None:
        self._source.forget()
        if self._create:
            await self._log.subscribe(self._handler.name)
        # A checkpoint that an earlier call moved may be on this server alone, and on no standby.
        await self._log.confirm_replicated()
        stored = await self._read_checkpoints()
        self.cursors = {
            partition: PartitionCursor(partition, position, position) for partition, position in stored.items()
        }

    async def _recheck_stalled_partitions(self) -> None:
        """A partition that another process took is tried again once its checkpoint stops moving.

        A checkpoint that was set back, as the swap of a rebuilt read model may do, is followed there.
        """
        now = time.monotonic()
        due_cursors = [
            cursor
            for cursor in self.cursors.values()
            if (cursor.checkpoint_conflict or cursor.failure) and cursor.retry_at <= now
        ]
        if not due_cursors and now - self._rechecked_at < _RECHECK_INTERVAL_S:
            return
        stored = await self._read_checkpoints()
        self._rechecked_at = now
        for cursor in self.cursors.values():
            if stored[cursor.partition] < cursor.checkpoint:
                cursor.checkpoint = cursor.handled_position = stored[cursor.partition]
                self._source.forget()  # a failover sets a checkpoint back, too
        for cursor in due_cursors:
            position = stored[cursor.partition]
            if position > cursor.handled_position:
                cursor.failures, cursor.failure = 0, None  # another process handled what this one could not
            elif cursor.failure:
                continue
            cursor.checkpoint_conflict = position != cursor.checkpoint
            if cursor.checkpoint_conflict:
                cursor.retry_at = now + _conflict_retry_delay_s()
            cursor.checkpoint = cursor.handled_position = position

    async def _read_checkpoints(self) -> dict[int, int]:
        stored = await self._log.checkpoints(self._handler.name)
        if not stored:
            raise SubscriptionGone(f"the subscription {self._handler.name} was taken away")
        return stored

    async def _handle_batches(self, batches: Mapping[int, Sequence[RecordedEvent]]) -> None:
        events: list[RecordedEvent] = []
        moves: list[CheckpointMove] = []
        for partition, batch in batches.items():
            known = self._known_prefix(self.cursors[partition], batch)
            if known:
                events.extend(known)
                moves.append(self._checkpoint_move(self.cursors[partition], known[-1].position))
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
                    await self._handle_batches({partition: batch})
                return
            if len(events) > 1:
                await self._handle_by_halves(moves[0].partition, events)
                return
            _log.exception("subscription stalled", partition=moves[0].partition, **self._bind)
            self._stall(self.cursors[moves[0].partition], error)
            return
        self._advance_cursors(moves, moved)

    async def _handle_by_halves(self, partition: int, events: Sequence[RecordedEvent]) -> None:
        """Handle the events before the one that the handler fails at, then that one alone."""
        middle = len(events) // 2
        await self._handle_batches({partition: events[:middle]})
        if self.cursors[partition].handled_position == events[middle].position - 1:
            await self._handle_batches({partition: events[middle:]})

    async def _on_rejection(self, rejected: EventRejected, batch: Sequence[RecordedEvent]) -> None:
        """Handle the events before a rejected one and wait there; after enough tries, set it aside."""
        cursor = self.cursors[rejected.event.partition]
        before = [event for event in batch if event.position < rejected.event.position]
        if before:
            await self._handle_batches({cursor.partition: before})
        if cursor.handled_position != rejected.event.position - 1 or cursor.checkpoint_conflict:
            return  # those before it were not handled
        _log.error("event rejected", error=str(rejected), exc_info=rejected.__cause__, **self._bind)
        self._stall(cursor, rejected, max_delay_s=_MAX_REJECTED_RETRY_DELAY_S)
        if cursor.failures >= _TRIES_BEFORE_QUARANTINE and await self._handler.quarantine(rejected):
            cursor.failures, cursor.failure, cursor.retry_at = 0, None, 0.0

    def _known_prefix(self, cursor: PartitionCursor, batch: Sequence[RecordedEvent]) -> list[RecordedEvent]:
        """The events before the first that is missing, or that this release doesn't know: it must not be skipped."""
        try:
            expect_gapless(cursor.partition, cursor.handled_position, batch)
        except LogDamaged as error:
            _log.exception("subscription stalled", **self._bind)
            self._stall(cursor, error)
            return []
        for n, event in enumerate(batch):
            if not self._is_known(event.code, event.schema_version):
                if n == 0:
                    unknown = UnknownEvent(event.code, event.schema_version, event.partition, event.position)
                    _log.error("subscription stalled", error=str(unknown), **self._bind)
                    self._stall(cursor, unknown)
                return list(batch[:n])
        return list(batch)

    def _advance_cursors(
        self, moves: Sequence[CheckpointMove], moved: Mapping[int, CheckpointMoveOutcome] | None
    ) -> None:
        for move in moves:
            cursor = self.cursors[move.partition]
            if moved is None:
                cursor.handled_position = move.end
            else:
                answer = moved.get(move.partition)
                if answer is None or answer.verdict == "conflict":
                    cursor.checkpoint_conflict = True
                    cursor.retry_at = time.monotonic() + _conflict_retry_delay_s()
                elif answer.verdict == "accepted":
                    cursor.checkpoint = cursor.handled_position = answer.position
                    cursor.moved_at = time.monotonic()
                # A rejected move: read and fold again at once, from the checkpoint.
                else:
                    cursor.handled_position = cursor.checkpoint
            cursor.failures, cursor.failure = 0, None

    async def _commit_lazy_moves(self) -> None:
        now = time.monotonic()
        moves = [
            self._checkpoint_move(cursor, cursor.handled_position)
            for cursor in self.cursors.values()
            if cursor.handled_position > cursor.checkpoint
            and not cursor.checkpoint_conflict
            and now - cursor.moved_at >= _LAZY_MOVE_INTERVAL_S
        ]
        if moves:
            self._advance_cursors(moves, await self._handler.commit_moves(moves))

    def _checkpoint_move(self, cursor: PartitionCursor, end: int) -> CheckpointMove:
        return CheckpointMove(
            subscription=self._handler.name, partition=cursor.partition, start=cursor.checkpoint, end=end
        )

    def _stall(self, cursor: PartitionCursor, error: Exception, *, max_delay_s: float = _MAX_RETRY_DELAY_S) -> None:
        cursor.failure = str(error) or type(error).__name__
        cursor.retry_at = time.monotonic() + min(max_delay_s, max_delay_s / 60 * 2**cursor.failures)
        cursor.failures = min(cursor.failures + 1, 10)


class _LogReader:
    """Reads the log for one subscription."""

    def __init__(self, log: Log, notifier: Notifier) -> None:
        self._log = log
        self._notifier = notifier

    @asynccontextmanager
    async def follow(self, _stream: None) -> AsyncIterator[WakeSignal]:
        wake_signal = self._notifier.add_wake_signal(LOG_CHANNEL)
        try:
            yield wake_signal
        finally:
            self._notifier.remove_wake_signal(wake_signal)

    async def read_after(self, positions: Mapping[int, int], *, limit: int) -> dict[int, list[RecordedEvent]]:
        return await self._log.read_after(positions, limit=limit)

    def forget(self) -> None:
        """It keeps nothing."""


def _conflict_retry_delay_s() -> float:
    return 2.0 + 2.0 * random.random()  # noqa: S311  # jitter, no secret
