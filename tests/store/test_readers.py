"""Invariant 4: a reader misses no event and sees none out of order, whenever it was committed."""

import asyncio
import random
from uuid import UUID

import asyncpg
import msgspec

from eventstore.ids import new_id
from eventstore.log import Append, Batch
from tests.kit import Store, connect, some_append, stream_in


async def commit_on(connection: asyncpg.Connection, *appends: Append) -> None:
    """Call the log's function on a given connection, as part of whatever transaction it is in."""
    text = msgspec.json.encode(appends).decode()
    await connection.execute("select eventstore.commit($1::json)", text)


async def test_an_event_that_commits_late_is_not_skipped(store: Store, db_url: str) -> None:
    """Given an append held open and another behind it, then a reader sees neither before, and both in order after."""
    slow, fast = await connect(db_url), await connect(db_url)
    early, late = some_append(stream_in(5)), some_append(stream_in(5))
    transaction = slow.transaction()
    await transaction.start()
    await commit_on(slow, early)
    behind = asyncio.create_task(commit_on(fast, late))
    await asyncio.sleep(0.2)
    assert await store.log.read_after({5: 0}, limit=10) == {}
    await transaction.commit()
    await behind
    seen = (await store.log.read_after({5: 0}, limit=10))[5]
    assert [one.stream_id for one in seen] == [early.stream, late.stream]
    assert [one.position for one in seen] == [1, 2]
    await slow.close()
    await fast.close()


async def test_a_transaction_that_took_its_id_early_does_not_reorder_a_stream(store: Store, db_url: str) -> None:
    """Given a transaction with an older id that appends version 2 after version 1 was committed, then 1 comes first."""
    early = await connect(db_url)
    stream = new_id()
    partition = stream.bytes[-1] & 7
    transaction = early.transaction()
    await transaction.start()
    await early.execute("select pg_current_xact_id()")
    await store.log.commit(Batch(appends=[some_append(stream)]))
    await commit_on(early, some_append(stream, expected=1))
    await transaction.commit()
    seen = (await store.log.read_after({partition: 0}, limit=10))[partition]
    assert [one.version for one in seen] == [1, 2]
    await early.close()


async def test_an_open_writing_transaction_elsewhere_delays_no_reader(
    store: Store, db_url: str, empty_url: str
) -> None:
    """Given writing transactions open in this and another database, then a new event is read at once."""
    here, elsewhere = await connect(db_url), await connect(empty_url)
    for connection in (here, elsewhere):
        await connection.execute("create table scratch (n int)")
        await connection.execute("begin")
        await connection.execute("insert into scratch values (1)")
    one = some_append(stream_in(2))
    await store.log.commit(Batch(appends=[one]))
    assert [event.stream_id for event in (await store.log.read_after({2: 0}, limit=10))[2]] == [one.stream]
    await here.close()
    await elsewhere.close()


async def test_readers_see_every_event_once_and_in_order_under_concurrent_writers(  # noqa: C901  # two actors
    store: Store, db_url: str
) -> None:
    """Given ten writers that commit late or roll back, then a follower sees what was committed, once and in order."""
    written: dict[UUID, int] = {}
    writing = True

    async def writer(seed: int) -> None:
        dice = random.Random(seed)
        connection = await connect(db_url)
        streams = [new_id() for _ in range(3)]
        versions = dict.fromkeys(streams, 0)
        for _ in range(25):
            stream, count = dice.choice(streams), dice.randint(1, 3)
            transaction = connection.transaction()
            await transaction.start()
            if dice.random() < 0.3:
                await connection.execute("select pg_current_xact_id()")
                await asyncio.sleep(dice.uniform(0, 0.003))
            await commit_on(connection, some_append(stream, expected=versions[stream], count=count))
            await asyncio.sleep(dice.uniform(0, 0.004))
            if dice.random() < 0.2:
                await transaction.rollback()
            else:
                await transaction.commit()
                versions[stream] += count
        written.update(versions)
        await connection.close()

    async def follower() -> dict[UUID, list[int]]:
        cursor = dict.fromkeys(range(8), 0)
        seen: dict[UUID, list[int]] = {}
        last = False
        while True:
            batches = await store.log.read_after(cursor, limit=50)
            for partition, events in batches.items():
                cursor[partition] = events[-1].position
                for one in events:
                    seen.setdefault(one.stream_id, []).append(one.version)
            if not batches:
                if last:
                    return seen
                last = not writing

    following = asyncio.create_task(follower())
    await asyncio.gather(*(writer(seed) for seed in range(10)))
    writing = False
    seen = await following
    assert seen == {stream: list(range(1, count + 1)) for stream, count in written.items() if count}
