"""The tailer: who follows reads everything once and in order, however small the ring and however slow the reader."""

import asyncio
import random
from collections.abc import AsyncIterator
from uuid import UUID

import pytest

from eventstore.committer import Transition
from eventstore.errors import LogDamaged
from eventstore.events import RecordedEvent
from eventstore.ids import new_id
from eventstore.log import Batch, LogHead, PartitionEnd
from eventstore.tailer import Tailer
from tests.kit import Store, connect, eventually, some_append, stream_in
from tests.store.test_readers import commit_on

PARTITIONS = range(8)
CAPACITY = 16
STREAMS = 10
EVENTS = 30


class Pair:
    """Two processes on one log, each with a tailer whose ring holds next to nothing, and what each of them writes."""

    def __init__(self, stores: tuple[Store, Store]) -> None:
        self.stores = stores
        self.tailers = tuple(Tailer(store.log, store.notifier, capacity=CAPACITY, poll_s=0.05) for store in stores)
        # In half of the partitions, so that both write to each of them.
        self.streams = tuple([stream_in(index % 4) for index in range(STREAMS)] for _ in stores)
        for store in stores:
            store.notifier.start()

    @property
    def written(self) -> dict[UUID, list[int]]:
        """Every stream's versions once both have written."""
        return {stream: list(range(1, EVENTS + 1)) for streams in self.streams for stream in streams}

    async def write(self) -> None:
        """Append to all streams from both processes at once, one to three events at a time."""
        await asyncio.gather(*(self._write(process) for process in range(2)))

    async def _write(self, process: int) -> None:
        dice = random.Random(process)
        left = dict.fromkeys(self.streams[process], EVENTS)
        while left:
            stream = dice.choice(list(left))
            count = min(left[stream], dice.randint(1, 3))
            append = some_append(stream, expected=EVENTS - left[stream], count=count)
            await self.stores[process].committer.commit(Transition(append=append))
            left[stream] -= count
            if not left[stream]:
                del left[stream]


@pytest.fixture
async def pair(store: Store, db_url: str) -> AsyncIterator[Pair]:
    """Two processes on a log of their own."""
    other = Store(db_url)
    pair = Pair((store, other))
    yield pair
    for tailer in pair.tailers:
        await tailer.stop()
    await other.close()


class Reader:
    """What one follower has read, held against the order at once. pause: seconds that it takes between two reads."""

    def __init__(self, *, pause: float, limit: int) -> None:
        self.versions: dict[UUID, list[int]] = {}
        self.positions = dict.fromkeys(PARTITIONS, 0)
        self._pause = pause
        self._limit = limit

    async def follow_stream(self, tailer: Tailer, stream: UUID) -> None:
        """Read a stream to its end."""
        seen = self.versions.setdefault(stream, [])
        async with tailer.follow(stream) as wake_signal:
            while len(seen) < EVENTS:
                events = await tailer.stream_events_after(stream, len(seen), limit=self._limit)
                for event in events:
                    self._check(event)
                await asyncio.sleep(self._pause)
                if not events:
                    await wake_signal.wait(5)

    async def follow_all(self, tailer: Tailer, *, until: int) -> None:
        """Read the whole log until so many events were read."""
        async with tailer.follow(None) as wake_signal:
            while sum(self.positions.values()) < until:
                batches = await tailer.log_events_after(self.positions, limit=self._limit)
                for partition, events in batches.items():
                    for event in events:
                        assert (event.partition, event.position) == (partition, self.positions[partition] + 1)
                        self.positions[partition] += 1
                        self._check(event)
                await asyncio.sleep(self._pause)
                if not batches:
                    await wake_signal.wait(5)

    def _check(self, event: RecordedEvent) -> None:
        self.versions.setdefault(event.stream_id, []).append(event.version)


async def test_a_tailer_feeds_its_followers_from_history_and_ring(store: Store) -> None:
    """Given a follower, when events come before and after it follows, then it reads each version once, in order."""
    stream = new_id()
    await store.log.commit(Batch(appends=[some_append(stream, count=2)]))
    store.notifier.start()
    tailer = Tailer(store.log, store.notifier, capacity=4, poll_s=0.1)
    seen: list[int] = []

    async def follow() -> None:
        async with tailer.follow(stream) as wake_signal:
            while len(seen) < 12:
                seen.extend([one.version for one in await tailer.stream_events_after(stream, seen[-1] if seen else 0)])
                if len(seen) < 12:
                    await wake_signal.wait(5)

    following = asyncio.create_task(follow())
    for version in range(2, 12):
        await store.log.commit(Batch(appends=[some_append(stream, expected=version), some_append()]))
    async with asyncio.timeout(20):
        await following
    assert seen == list(range(1, 13))
    await eventually(
        lambda: asyncio.sleep(0, tailer.task._task is None or tailer.task._task.done()), what="the idle tailer's end"
    )
    await tailer.stop()


async def test_slow_and_fast_followers_of_two_processes_read_everything_once(pair: Pair) -> None:
    """Given two writing processes and rings that forget at once, then every follower of either reads all, in order."""
    total = 2 * STREAMS * EVENTS
    work = []
    of_all: list[Reader] = []
    of_streams: list[tuple[UUID, Reader]] = []
    for tailer in pair.tailers:
        for pause, limit in ((0, 500), (0.02, 3)):
            of_all.append(Reader(pause=pause, limit=limit))
            work.append(of_all[-1].follow_all(tailer, until=total))
            for stream in pair.written:
                of_streams.append((stream, Reader(pause=pause, limit=limit)))
                work.append(of_streams[-1][1].follow_stream(tailer, stream))
    async with asyncio.timeout(60):
        await asyncio.gather(pair.write(), *work)
    for reader in of_all:
        assert reader.versions == pair.written
    for stream, reader in of_streams:
        assert reader.versions == {stream: pair.written[stream]}


async def test_a_follower_who_comes_and_goes_between_two_processes_misses_nothing(pair: Pair) -> None:
    """Given a follower that goes on at the other process, whose tailer it starts anew, then it reads all, in order."""
    dice = random.Random(7)
    reader = Reader(pause=0, limit=5)
    writing = asyncio.create_task(pair.write())
    total = 2 * STREAMS * EVENTS
    async with asyncio.timeout(60):
        for turn in range(total):
            seen = sum(reader.positions.values())
            if seen == total:
                break
            await reader.follow_all(pair.tailers[turn % 2], until=min(total, seen + dice.randint(1, 40)))
            if dice.random() < 0.3:
                await asyncio.sleep(0.1)  # long enough for both tailers to fall asleep
        await writing
    assert reader.versions == pair.written


async def test_what_is_appended_while_the_tailer_starts_wakes_its_followers(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given an event between a follower's first look and the tailer's, which takes it for old, then it is told."""
    stream, looked = new_id(), asyncio.Event()
    head = store.log.read_head

    async def late() -> LogHead:
        await looked.wait()
        await store.log.commit(Batch(appends=[some_append(stream)]))
        return await head()

    monkeypatch.setattr(store.log, "read_head", late)
    tailer = Tailer(store.log, store.notifier)
    async with tailer.follow(stream) as wake_signal:
        assert await tailer.stream_events_after(stream, 0) == []
        looked.set()
        assert await wake_signal.wait(20)
        assert [event.version for event in await tailer.stream_events_after(stream, 0)] == [1]
    await tailer.stop()


async def test_what_one_process_has_told_the_other_does_not_tell_again(pair: Pair) -> None:
    """Given a position that this process's tailer has not reached, then it tells only what comes after it."""
    tailer, store = pair.tailers[0], pair.stores[0]
    stream = stream_in(3)
    await store.log.commit(Batch(appends=[some_append(stream, count=2)]))
    async with tailer.follow(None) as wake_signal:
        await wake_signal.wait(5)
        tailer._ends[3] = PartitionEnd(0, b"")  # as of a tailer that lags behind the other process's
        assert await tailer.log_events_after({3: 2}) == {}
        await store.log.commit(Batch(appends=[some_append(stream, expected=2)]))
        found = await eventually(lambda: tailer.log_events_after({3: 2}))
        assert [event.version for event in found[3]] == [3]


async def test_a_log_that_was_set_back_is_read_anew(store: Store, db_url: str) -> None:
    """Given a server that lost an event that the tailer has shown, then its followers are told what came instead."""
    stream = stream_in(6)
    tailer = Tailer(store.log, store.notifier, poll_s=0.02)
    async with tailer.follow(None):
        await store.log.commit(Batch(appends=[some_append(stream, count=2)]))
        await eventually(lambda: asyncio.sleep(0, 6 in tailer._ends and tailer._ends[6].position == 2))
        await damage(db_url, 6, 2)
        await store.log.commit(Batch(appends=[some_append(stream, expected=1, count=2)]))
        stored = await store.log.read_stream(stream)

        async def told() -> bool:
            return (await tailer.read_after({6: 1}, limit=9)).get(6) == stored[1:]

        await eventually(told)
    await tailer.stop()


async def damage(url: str, partition: int, position: int) -> None:
    """Remove an event behind the log's back."""
    connection = await connect(url)
    await connection.execute("alter table eventstore.envelopes disable trigger all")
    await connection.execute(
        "delete from eventstore.events where partition = $1 and position = $2", partition, position
    )
    await connection.close()


async def test_an_event_that_was_removed_is_missed(store: Store, db_url: str) -> None:
    """Given an event removed behind the log's back, then who would read past it is told; who is past it reads on."""
    stream = stream_in(6)
    await store.log.commit(Batch(appends=[some_append(stream, count=4)]))
    await damage(db_url, 6, 2)
    tailer = Tailer(store.log, store.notifier)
    with pytest.raises(LogDamaged, match="position 2 is missing"):
        await tailer.log_events_after({6: 0})
    assert [event.position for event in (await tailer.log_events_after({6: 2}))[6]] == [3, 4]


@pytest.mark.parametrize("removed", [3, 4])
async def test_an_event_that_was_removed_before_the_tailer_read_it_is_missed(
    store: Store, db_url: str, removed: int
) -> None:
    """Given a gap that comes while followers read, then those before it are told, and those behind it read on."""
    stream = stream_in(6)
    tailer = Tailer(store.log, store.notifier, poll_s=0.02)
    connection = await connect(db_url)
    async with tailer.follow(None):
        await store.log.commit(Batch(appends=[some_append(stream, count=2)]))
        await eventually(lambda: tailer.log_events_after({6: 1}))
        await eventually(lambda: asyncio.sleep(0, tailer._ends[6].position == 2))
        async with connection.transaction():
            await commit_on(connection, some_append(stream, expected=2, count=3))
            await connection.execute("alter table eventstore.envelopes disable trigger all")
            await connection.execute(f"delete from eventstore.events where partition = 6 and position = {removed}")
        for position in (2, 0):
            with pytest.raises(LogDamaged, match=f"position {removed} is missing"):
                await eventually(lambda after=position: tailer.log_events_after({6: after}))  # type: ignore[misc]
        await store.log.commit(Batch(appends=[some_append(stream, expected=5)]))
        found = await eventually(lambda: tailer.log_events_after({6: 5}))
        assert [event.position for event in found[6]] == [6]
    await connection.close()
    await tailer.stop()
