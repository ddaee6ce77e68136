"""Feeds all readers of a process from one bounded ring: a thousand readers cost the database one.

The ring holds the newest events of the log, indexed by stream and by partition. Who fell behind it reads the database
by itself.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from uuid import UUID

import structlog

from eventstore.database import Backoff
from eventstore.errors import DatabaseUnavailable, LogDamaged
from eventstore.events import RecordedEvent
from eventstore.integrity.chain import event_chain
from eventstore.log import Log, PartitionEnd, expect_gapless
from eventstore.notifier import LOG_CHANNEL, Notifier, WakeSignal
from eventstore.supervision import SupervisedTask

_BATCH_SIZE = 1000
# Readers of old events are limited: many at once would take every connection of the pool from the live readers.
_MAX_CATCHING_UP_READERS = 2
_FAILURES_BEFORE_WAKING = 6
"""After so many failed reads, a few seconds, the followers learn of it by reading themselves."""
_log = structlog.get_logger(__name__)


class Tailer:
    """The one tailer of a process. It reads only while somebody follows the log or a stream. task: what reads.

    capacity: events that the ring holds. poll_s: how late an event may come when a notification is lost. gather_s: how
    long a read waits for more events if the one before it found several streams: so fewer reads find them all.
    """

    def __init__(
        self, log: Log, notifier: Notifier, *, capacity: int = 10_000, poll_s: float = 0.5, gather_s: float = 0.0
    ) -> None:
        self._log = log
        self._notifier = notifier
        self._capacity = capacity
        self._poll_s = poll_s
        self._gather_s = gather_s
        self._found_several_streams = False
        self._buffer: deque[RecordedEvent] = deque()
        self._streams: dict[UUID, deque[RecordedEvent]] = {}
        self._partitions: dict[int, deque[RecordedEvent]] = {}
        self._followers: dict[UUID | None, set[WakeSignal]] = {}
        self._ends: dict[int, PartitionEnd] = {}
        self.task = SupervisedTask("tailer", self._run)
        self._stream_readers_behind = asyncio.Semaphore(_MAX_CATCHING_UP_READERS)
        self._log_readers_behind = asyncio.Semaphore(_MAX_CATCHING_UP_READERS)

    @asynccontextmanager
    async def follow(self, stream: UUID | None) -> AsyncIterator[WakeSignal]:
        """A signal that wakes whenever the stream has grown, or may have; with None, whenever the log has."""
        wake_signal = WakeSignal()
        self._followers.setdefault(stream, set()).add(wake_signal)
        self.task.start()
        try:
            yield wake_signal
        finally:
            followers = self._followers[stream]
            followers.discard(wake_signal)
            if not followers:
                del self._followers[stream]

    async def stream_events_after(self, stream: UUID, version: int, *, limit: int = 500) -> list[RecordedEvent]:
        """Events of a stream after a version, oldest first; from the ring where it reaches back so far."""
        held = self._streams.get(stream)
        if held and held[0].version <= version + 1:
            return _last_events(held, held[-1].version - version, limit)
        async with self._stream_readers_behind:
            return await self._log.read_stream(stream, after=version, limit=limit)

    async def log_events_after(
        self, positions: Mapping[int, int], *, limit: int = 500
    ) -> dict[int, list[RecordedEvent]]:
        """At most `limit` events of each partition after its position, in order; from the ring where it reaches back.

        Raises `LogDamaged` for a gap.
        """
        found, behind = self._held_after(positions, limit)
        if behind:
            async with self._log_readers_behind:
                found |= await self._log.read_after(behind, limit=limit)
        for partition, events in found.items():
            expect_gapless(partition, positions[partition], events)
        return found

    async def read_after(self, positions: Mapping[int, int], *, limit: int) -> dict[int, list[RecordedEvent]]:
        """As `Log.read_after`, from the ring where it reaches back. For subscriptions: it waits for no other reader."""
        found, behind = self._held_after(positions, limit)
        return found | await self._log.read_after(behind, limit=limit) if behind else found

    def forget(self) -> None:
        """Forget what was read: the server may be another one, which lacks what the one before it showed."""
        self._buffer.clear()
        self._streams.clear()
        self._partitions.clear()
        self._ends = {}

    def _held_after(
        self, positions: Mapping[int, int], limit: int
    ) -> tuple[dict[int, list[RecordedEvent]], dict[int, int]]:
        """The events that the ring holds, and the positions that it doesn't reach back to."""
        found: dict[int, list[RecordedEvent]] = {}
        behind: dict[int, int] = {}
        for partition, position in positions.items():
            held = self._partitions.get(partition)
            end = self._ends.get(partition)
            if end is not None and position >= end.position:
                continue
            if held and held[0].position <= position + 1:
                found[partition] = _last_events(held, held[-1].position - position, limit)
            else:
                behind[partition] = position
        return found, behind

    def wake_followers(self) -> None:
        """Wake every follower, whether or not there are new events."""
        for wake_signals in self._followers.values():
            for wake_signal in wake_signals:
                wake_signal.wake()

    async def stop(self) -> None:
        """Stop reading, and wake every follower once more. A second call does nothing."""
        await self.task.stop()
        self.wake_followers()

    async def _run(self) -> None:
        wake_signal = self._notifier.add_wake_signal(LOG_CHANNEL)
        backoff = Backoff()
        try:
            while self._followers:
                try:
                    if not self._ends:
                        self._ends = dict((await self._log.read_head()).ends)
                        self.wake_followers()
                    has_more = await self._read_new_events()
                except (DatabaseUnavailable, LogDamaged) as error:
                    self.forget()  # a follower before a gap finds it in the database; others continue
                    if backoff.failures == 0:
                        _log.warning("tailer can't read the log, trying again", error=str(error))
                    if backoff.failures == _FAILURES_BEFORE_WAKING:
                        self.wake_followers()
                    await backoff.wait()
                    continue
                backoff.reset()
                if not has_more:
                    await wake_signal.wait(self._poll_s, gather_s=self._gather_s if self._found_several_streams else 0)
        finally:
            self._notifier.remove_wake_signal(wake_signal)
            self.forget()
            self.wake_followers()

    async def _read_new_events(self) -> bool:
        """Read what came since into the ring. Answers whether there may be more."""
        ends = self._ends
        batches = await self._log.read_after(
            {partition: end.position for partition, end in ends.items()}, limit=_BATCH_SIZE
        )
        if self._ends is not ends:
            return True  # forgotten meanwhile
        grown: set[UUID | None] = {None} if batches else set()
        for partition, events in batches.items():
            _expect_continuation(partition, ends[partition], events)
            ends[partition] = PartitionEnd(events[-1].position, events[-1].chain)
            for event in events:
                self._add_to_ring(event)
                grown.add(event.stream_id)
        self._found_several_streams = len(grown) > 2
        for stream in grown & self._followers.keys():
            for wake_signal in self._followers[stream]:
                wake_signal.wake()
        return any(len(events) == _BATCH_SIZE for events in batches.values())

    def _add_to_ring(self, event: RecordedEvent) -> None:
        self._buffer.append(event)
        self._streams.setdefault(event.stream_id, deque()).append(event)
        self._partitions.setdefault(event.partition, deque()).append(event)
        if len(self._buffer) > self._capacity:
            # The ring's oldest event is its stream's and its partition's oldest, too.
            oldest = self._buffer.popleft()
            self._partitions[oldest.partition].popleft()
            self._streams[oldest.stream_id].popleft()
            if not self._streams[oldest.stream_id]:
                del self._streams[oldest.stream_id]


def _last_events(held: deque[RecordedEvent], count: int, limit: int) -> list[RecordedEvent]:
    """The first `limit` of the last `count` events. They are counted from the right: readers want the newest."""
    start = len(held) - count
    return [held[index] for index in range(start, min(len(held), start + limit))]


def _expect_continuation(partition: int, end: PartitionEnd, events: Sequence[RecordedEvent]) -> None:
    """Raise `LogDamaged` unless the events follow what was read before them.

    The ring finds a position by counting, so it must have no gap; and after a failover that lost events, others bear
    their positions.
    """
    expect_gapless(partition, end.position, events)
    if end.position and event_chain(end.chain, events[0]) != events[0].chain:
        raise LogDamaged(
            f"partition {partition}: position {events[0].position} does not follow the event that was read before it; "
            "the log was set back, as by a failover"
        )
