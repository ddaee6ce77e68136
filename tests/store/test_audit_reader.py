"""What somebody with the database's rights has changed behind the log's back is found, in the database itself."""

from datetime import timedelta
from uuid import UUID

import asyncpg
import pytest

from eventstore.ids import new_id
from eventstore.integrity.reader import AuditReader
from eventstore.integrity.verifier import IntegrityViolation, Verifier
from eventstore.log import Append, Batch
from orchestrator import codec
from orchestrator.events import PersonalText
from tests.kit import Store, connect, event, job_created, some_append, stream_in


async def flaws(store: Store) -> list[IntegrityViolation]:
    """What a verification of the whole log finds."""
    reader = AuditReader(store.database)
    verifier = Verifier(await reader.read_log_identity(), whole=True, vocabulary=codec.COLUMN_VOCABULARY)
    found: list[IntegrityViolation] = []
    for partition in await reader.nonempty_partitions():
        async for page in reader.read_pages(partition):
            for one in page:
                found += verifier.check_event(one)
    return found + verifier.take_open_violations()


async def written(store: Store) -> UUID:
    """Partition 4 with two streams interleaved, and something elsewhere; answers the first stream."""
    first, second = stream_in(4), stream_in(4)
    private = PersonalText(prompt="ein Schloß, 城, 🏰", metadata={"k": "v"})
    created = Append(stream=first, category="job", expected=0, events=(event(job_created(), private=private),))
    await store.log.commit(Batch(appends=[created]))
    await store.log.commit(Batch(appends=[some_append(second, count=2), some_append(first, expected=1, count=3)]))
    await store.log.commit(Batch(appends=[some_append(second, expected=2)]))
    await store.log.commit(Batch(appends=[some_append() for _ in range(20)]))
    return first


async def forge(url: str, statement: str) -> None:
    """Do something that the log's guards forbid."""
    connection: asyncpg.Connection = await connect(url)
    for table in ("envelopes", "private"):
        await connection.execute(f"alter table eventstore.{table} disable trigger user")
    await connection.execute(statement)
    await connection.close()


async def test_a_log_as_it_was_written_verifies(store: Store) -> None:
    """Given private text, several streams and partitions, then there is nothing to say; nor after an erasure."""
    first = await written(store)
    assert await flaws(store) == []
    await store.database.execute_once("select eventstore.erase($1)", first)
    assert await flaws(store) == []


FORGERIES = {
    "update eventstore.events set data = '{}' where {row}": ("envelope", 3),
    "update eventstore.events set code = 'job.finish' where {row}": ("code", 3),
    "update eventstore.events set tenant = 'other' where {row}": ("envelope", 3),
    "update eventstore.events set recorded_at = recorded_at + interval '1 microsecond' where {row}": (
        "recorded_at",
        3,
    ),
    "update eventstore.events set hash = sha256('') where {row}": ("hash", 3),
    "update eventstore.events set chain = sha256('') where {row}": ("chain", 3),
    "delete from eventstore.events where {row}": ("position", 4),
    "update eventstore.private set text = 'x'": ("private", 1),
    "update eventstore.private set salt = null": ("private_salt", 1),
    "update eventstore.events set partition = 9 where {row}": ("position", 4),
    "update eventstore.events set position = position + 100 where partition = 4 and position > 3": ("position", 104),
}


@pytest.mark.parametrize("statement", FORGERIES)
async def test_a_forgery_is_found_where_it_is(store: Store, db_url: str, statement: str) -> None:
    """Given one change of one row, then the first flaw in its partition names the place and the field."""
    field, position = FORGERIES[statement]
    await written(store)
    await forge(db_url, statement.replace("{row}", "partition = 4 and position = 3"))
    found = [flaw for flaw in await flaws(store) if flaw.partition == 4]
    assert (found[0].field.split(" ")[0], found[0].position) == (field, position)


async def test_rows_where_no_reader_looks_are_found(store: Store, db_url: str) -> None:
    """Given an event in a partition that the log doesn't have, then it is named too."""
    await written(store)
    await forge(
        db_url,
        "insert into eventstore.envelopes select 200, 1, gen_random_uuid(), 1, category, tenant, gen_random_uuid(), "
        "code, schema_version, ts, recorded_at, data, meta, null, hash, chain from eventstore.events limit 1",
    )
    assert "partition" in {flaw.field for flaw in await flaws(store) if flaw.partition == 200}


async def test_one_job_is_read_with_its_neighbours_links(store: Store, db_url: str) -> None:
    """Given one job of a partition, then it verifies alone; and so does its neighbour's damage not concern it."""
    first = await written(store)
    reader = AuditReader(store.database)
    verifier = Verifier(await reader.read_log_identity(), whole=False, vocabulary=codec.COLUMN_VOCABULARY)
    events = await reader.read_stream(first)
    assert [one.version for one in events] == [1, 2, 3, 4]
    assert await reader.read_stream(first, after=1, limit=2) == events[1:3]
    assert [flaw for one in events for flaw in verifier.check_event(one)] + verifier.take_open_violations() == []
    assert await reader.read_stream(new_id()) == []
    await forge(db_url, f"update eventstore.events set data = '{{}}' where stream_id <> '{first}'")
    verifier = Verifier(await reader.read_log_identity(), whole=False, vocabulary=codec.COLUMN_VOCABULARY)
    assert [
        flaw for one in await reader.read_stream(first) for flaw in verifier.check_event(one)
    ] + verifier.take_open_violations() == []


async def test_pages_follow_each_other(store: Store) -> None:
    """Given more events than a page holds, then all come, once and in order; and from any moment on."""
    stream = stream_in(4)
    for expected in range(0, 2500, 500):
        await store.log.commit(Batch(appends=[some_append(stream, expected=expected, count=500)]))
    reader = AuditReader(store.database)
    events = [one async for page in reader.read_pages(4) for one in page]
    assert [one.position for one in events] == list(range(1, 2501))
    for index in (0, 1, 499, 1200, 2499):
        since = events[index].recorded_at
        after = await reader.position_before(4, since)
        assert after == sum(one.recorded_at < since for one in events)
    assert await reader.position_before(4, events[-1].recorded_at + timedelta(seconds=1)) == 2500
    assert await reader.position_before(5, events[0].recorded_at) == 0
    assert await reader.nonempty_partitions() == [4]
