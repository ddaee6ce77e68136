"""The log's storage grows by leaves: appends never fail for want of one, and adding one stops nobody."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID

import asyncpg
import msgspec
import pytest

from eventstore.database import Database
from eventstore.integrity.reader import AuditReader
from eventstore.integrity.verifier import Verifier
from eventstore.log import Append, Batch, CheckpointMove, Log, expect_gapless
from orchestrator import codec
from tests.kit import Store, connect, eventually, some_append, stream_in

_LEAF_POSITIONS = 6
_LEAVES = """
select c.oid::regclass::text as leaf, pg_get_expr(c.relpartbound, c.oid) as bounds
from pg_inherits i join pg_class c on c.oid = i.inhrelid
where i.inhparent = 'eventstore.envelopes'::regclass order by substring(c.relname from '[0-9]+')::bigint
"""
_LEAF_LOCK = "lock table only eventstore.envelopes in share update exclusive mode"
_WAITING = (
    "select count(*) from pg_locks where relation = 'eventstore.envelopes'::regclass and not granted "
    "and mode = 'ShareUpdateExclusiveLock'"
)


async def with_small_leaves(url: str) -> asyncpg.Connection:
    """An owner's connection to an empty log whose leaves hold few positions."""
    connection: asyncpg.Connection = await connect(url)
    await connection.execute("drop table eventstore.envelopes_to_4194304")
    await connection.execute("update eventstore.log set leaf_positions = $1, leaf_end = 0", _LEAF_POSITIONS)
    await connection.execute("select eventstore.add_leaves(0)")
    return connection


async def leaves(connection: asyncpg.Connection) -> list[tuple[str, str]]:
    """The leaves and their bounds, in order."""
    return [tuple(row) for row in await connection.fetch(_LEAVES)]


def leaves_until(end: int) -> list[tuple[str, str]]:
    """As they should be."""
    return [
        (
            f"eventstore.envelopes_to_{start + _LEAF_POSITIONS}",
            f"FOR VALUES FROM ('{start}') TO ('{start + _LEAF_POSITIONS}')",
        )
        for start in range(0, end, _LEAF_POSITIONS)
    ]


async def fill(log: Log, partition: int, events: int) -> UUID:
    """Append a stream of events, one by one."""
    stream = stream_in(partition)
    for version in range(events):
        await log.commit(Batch(appends=[some_append(stream, expected=version)]))
    return stream


async def commit_on(connection: asyncpg.Connection, *appends: Append) -> None:
    """Append within whatever transaction a connection is in."""
    await connection.execute("select eventstore.commit($1::json)", msgspec.json.encode(appends).decode())


@asynccontextmanager
async def disturbances(url: str) -> AsyncIterator[None]:
    """VACUUM and ANALYZE of the table, one after the other; meanwhile a transaction that has read and holds it."""
    held, cleaner = await connect(url), await connect(url)

    async def clean() -> None:
        while True:
            await cleaner.execute("vacuum (analyze) eventstore.envelopes")

    async with held.transaction(isolation="repeatable_read"):
        await held.fetchval("select count(*) from eventstore.events")
        await held.execute("lock table eventstore.envelopes in row exclusive mode")
        cleaning = asyncio.create_task(clean())
        yield
        assert not cleaning.done()
        cleaning.cancel()
    for used in (held, cleaner):
        used.terminate()


async def test_appends_cross_many_leaves_while_others_read_and_clean(store: Store, db_url: str) -> None:
    """Given writers on all partitions, a reader, VACUUM, and a long transaction, then nothing is lost or waits."""
    owner = await with_small_leaves(db_url)
    written: dict[UUID, int] = {}
    seen = dict.fromkeys(range(8), 0)

    async def write(partition: int) -> None:
        database = Database(db_url)
        for count in (1, 2, 3, 9, 1, 2, 3, 1, 8):
            appends = [some_append(stream_in((partition + n) % 8), count=count) for n in range(2)]
            answers = await Log(database).commit(Batch(appends=appends))
            assert all(outcome.committed for outcome in answers.streams.values())
            written.update((one.stream, count) for one in appends)
        await database.close()

    async def read() -> bool:
        for partition, events in (await store.log.read_after(seen, limit=5)).items():
            expect_gapless(partition, seen[partition], events)
            seen[partition] = events[-1].position
        return sum(seen.values()) == 8 * 2 * 30

    reading = asyncio.create_task(eventually(read, within=60))
    async with disturbances(db_url):
        await asyncio.gather(*(write(partition) for partition in range(8)))
    await reading

    reader = AuditReader(store.database)
    verifier = Verifier(await reader.read_log_identity(), whole=True, vocabulary=codec.COLUMN_VOCABULARY)
    flaws = []
    for partition in await reader.nonempty_partitions():
        async for page in reader.read_pages(partition):
            flaws += [flaw for one in page for flaw in verifier.check_event(one)]
    assert flaws + verifier.take_open_violations() == []
    histories = await store.log.read_streams(list(written))
    assert {stream: len(events) for stream, events in histories.items()} == written
    end = await owner.fetchval("select leaf_end from eventstore.log")
    assert await leaves(owner) == leaves_until(end)
    assert len(leaves_until(end)) >= 10
    await owner.close()


async def test_the_next_leaf_is_added_ahead_once_nobody_is_in_its_way(store: Store, db_url: str) -> None:
    """Given a lock that is held when a head passes a leaf's middle, then appends go on, and a later one adds it."""
    owner = await with_small_leaves(db_url)
    async with owner.transaction():
        await owner.execute(_LEAF_LOCK)
        stream = await fill(store.log, 3, _LEAF_POSITIONS - 1)
        assert await leaves(owner) == leaves_until(_LEAF_POSITIONS)
    await store.log.commit(Batch(appends=[some_append(stream_in(4), count=_LEAF_POSITIONS // 2 - 1)]))
    assert await leaves(owner) == leaves_until(_LEAF_POSITIONS), "its own head has not passed the middle"
    await store.log.commit(Batch(appends=[some_append(stream_in(4))]))
    assert await leaves(owner) == leaves_until(2 * _LEAF_POSITIONS)
    await store.log.commit(Batch(appends=[some_append(stream, expected=_LEAF_POSITIONS - 1)]))
    assert [event.version for event in await store.log.read_stream(stream)] == list(range(1, _LEAF_POSITIONS + 1))
    await owner.close()


async def test_a_call_finds_the_head_in_a_leaf_that_another_has_just_added(store: Store, db_url: str) -> None:
    """Given a session that has read the log, and waits for a partition, then it sees the leaf that the other added."""
    owner = await with_small_leaves(db_url)
    adder, other = await connect(db_url), await connect(db_url)
    stream = await fill(store.log, 3, 1)
    for _ in range(2):  # its plans are made
        await commit_on(other, some_append(stream_in(4)))
    await adder.execute("begin")
    async with other.transaction():
        await other.execute("select from eventstore.events where partition = 3 order by position desc limit 1")
        await commit_on(adder, some_append(stream_in(3), count=_LEAF_POSITIONS))
        waiting = asyncio.create_task(commit_on(other, some_append(stream, expected=1)))

        async def waits() -> bool:
            return bool(await owner.fetchval("select exists (select from pg_locks where not granted)"))

        await eventually(waits)
        await adder.execute("commit")
        await waiting
    assert (await store.log.read_head()).ends[3].position == _LEAF_POSITIONS + 2
    for used in (adder, other, owner):
        await used.close()


async def test_without_a_leaf_appends_wait_for_one(store: Store, db_url: str) -> None:
    """Given two partitions whose heads are at the last leaf's end, then both wait for the lock, and one adds it."""
    owner = await with_small_leaves(db_url)
    async with owner.transaction():
        await owner.execute(_LEAF_LOCK)
        streams = [await fill(store.log, partition, _LEAF_POSITIONS - 1) for partition in (3, 4)]
        databases = [Database(db_url) for _ in streams]
        appends = [
            asyncio.create_task(
                Log(database).commit(Batch(appends=[some_append(stream, expected=_LEAF_POSITIONS - 1)]))
            )
            for database, stream in zip(databases, streams, strict=True)
        ]

        async def both_wait() -> bool:
            return bool(await owner.fetchval(_WAITING) == 2)

        await eventually(both_wait)
    for stream, outcome in zip(streams, await asyncio.gather(*appends), strict=True):
        assert outcome.streams[stream].committed
    assert await leaves(owner) == leaves_until(2 * _LEAF_POSITIONS)
    for database in databases:
        await database.close()
    await owner.close()


async def test_a_batch_longer_than_several_leaves_finds_room(store: Store, db_url: str) -> None:
    """Given more events in one call than leaves are long, then it adds as many as they need, and half a leaf."""
    owner = await with_small_leaves(db_url)
    await store.log.commit(Batch(appends=[some_append(stream_in(3), count=4 * _LEAF_POSITIONS)]))
    assert await leaves(owner) == leaves_until(5 * _LEAF_POSITIONS)
    await owner.close()


async def test_a_stream_and_a_lost_answer_are_found_in_whichever_leaf(store: Store, db_url: str) -> None:
    """Given a stream that spans leaves, then its head, a repeated call and a conflict are judged as in one table."""
    owner = await with_small_leaves(db_url)
    await store.log.subscribe("orchestrator")
    one = some_append(stream_in(3), count=_LEAF_POSITIONS)
    await store.log.commit(Batch(appends=[one]))
    await fill(store.log, 3, 3 * _LEAF_POSITIONS)
    again = await store.log.commit(Batch(appends=[one]))
    assert again.streams[one.stream].verdict == "already_committed"
    late = some_append(one.stream, expected=2)
    answers = await store.log.commit(
        Batch(appends=[late], moves=[CheckpointMove(subscription="orchestrator", partition=3, start=0, end=1)])
    )
    assert (answers.streams[one.stream].verdict, answers.streams[one.stream].version) == ("conflict", _LEAF_POSITIONS)
    assert (await store.log.read_head()).ends[3].position == 4 * _LEAF_POSITIONS
    await owner.close()


async def test_a_leaf_added_later_has_the_guards_and_indexes_of_the_first(store: Store, db_url: str) -> None:
    """Given a second leaf, then it differs from the first in its name and bounds alone, and rejects every change."""
    owner = await with_small_leaves(db_url)
    await fill(store.log, 3, _LEAF_POSITIONS + 1)
    definitions = """
        select pg_get_indexdef(indexrelid) from pg_index where indrelid = $1::text::regclass
        union all select pg_get_triggerdef(oid) || tgenabled::text from pg_trigger where tgrelid = $1::text::regclass
        order by 1"""
    first, second = [
        [row[0].replace(leaf, "leaf") for row in await owner.fetch(definitions, f"eventstore.{leaf}")]
        for leaf in (f"envelopes_to_{_LEAF_POSITIONS}", f"envelopes_to_{2 * _LEAF_POSITIONS}")
    ]
    assert first == second
    assert len(first) == 6
    await owner.execute("set session_replication_role = replica")
    for change in ("update {} set code = 'x'", "delete from {}", "truncate {}"):
        with pytest.raises(asyncpg.PostgresError, match="append-only"):
            await owner.execute(change.format(f"eventstore.envelopes_to_{2 * _LEAF_POSITIONS}"))
    await owner.close()


async def test_a_leaf_holds_no_version_twice(store: Store, db_url: str) -> None:
    """Given a writer that goes past the log's function, then a leaf's own index rejects a version that it has."""
    await store.log.commit(Batch(appends=[one := some_append(stream_in(3))]))
    owner = await connect(db_url)
    with pytest.raises(asyncpg.UniqueViolationError, match="stream_id_version_key"):
        await owner.execute(
            "insert into eventstore.envelopes select partition, position + 1, stream_id, version, category, tenant, "
            "event_id, code, schema_version, ts, recorded_at, data, meta, private_digest, hash, chain "
            "from eventstore.envelopes where stream_id = $1",
            one.stream,
        )
    await owner.close()
