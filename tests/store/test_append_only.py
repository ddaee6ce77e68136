"""Invariant 1: what is in the log stays as it is; erasure takes private text alone."""

import asyncpg
import pytest

from eventstore.ids import new_id
from eventstore.integrity.chain import STREAM_GENESIS, event_hash
from eventstore.log import Append, Batch
from orchestrator import codec
from orchestrator.events import PersonalText
from tests.kit import Store, connect, event, job_created

FIELDS = (
    "partition = partition + 1",
    "position = position + 100",
    "version = version + 100",
    "code = 'x'",
    "tenant = 'x'",
    "ts = ts + interval '1 s'",
    "data = '{}'",
    "meta = '{\"a\":1}'",
    "private_digest = null",
    "hash = '\\x00'",
    "chain = '\\x00'",
)
PRIVATE_FIELDS = ("version = version + 100", "text = 'another prompt'", "text = null", "salt = null")
TABLES = ("events", "envelopes", "envelopes_to_4194304")
"""The view, the table, and its leaf."""
UPDATES = [
    *(f"update eventstore.{table} set {change}" for table in TABLES for change in FIELDS),
    *(f"update eventstore.private set {change}" for change in PRIVATE_FIELDS),
]
REMOVALS = [
    *(f"delete from eventstore.{table}" for table in (*TABLES, "private")),
    *(f"truncate eventstore.{table}" for table in ("envelopes", "envelopes_to_4194304", "private")),
]


@pytest.mark.parametrize("update", UPDATES)
async def test_no_field_of_an_event_can_be_changed(store: Store, db_url: str, update: str) -> None:
    """Given an event with private text, when any field is updated, then the database rejects."""
    first = event(job_created(), private=PersonalText(prompt="a castle"))
    await store.log.commit(Batch(appends=[Append(stream=new_id(), category="job", expected=0, events=(first,))]))
    connection = await connect(db_url)
    with pytest.raises(asyncpg.PostgresError, match="append-only"):
        await connection.execute(update)
    await connection.close()


@pytest.mark.parametrize("deed", REMOVALS)
@pytest.mark.parametrize("replica", [False, True])
async def test_no_event_can_be_removed(store: Store, db_url: str, deed: str, *, replica: bool) -> None:
    """Neither DELETE nor TRUNCATE works, not even for a superuser who says that it is a replica."""
    first = event(job_created(), private=PersonalText(prompt="a castle"))
    await store.log.commit(Batch(appends=[Append(stream=new_id(), category="job", expected=0, events=(first,))]))
    connection = await connect(db_url)
    if replica:
        await connection.execute("set session_replication_role = replica")
    with pytest.raises(asyncpg.PostgresError, match="append-only"):
        await connection.execute(deed)
    await connection.close()


async def test_erasure_takes_the_private_text_and_every_hash_still_verifies(store: Store) -> None:
    """Given two events with prompts, when the stream is erased, then no text is left and the chain holds."""
    stream = new_id()
    first = event(job_created(), private=PersonalText(prompt="a castle"))
    second = event(job_created(), private=PersonalText(prompt="a moat"))
    await store.log.commit(Batch(appends=[Append(stream=stream, category="job", expected=0, events=(first, second))]))
    before = await store.log.read_stream(stream)
    assert [codec.decode_private(one).prompt for one in before] == ["a castle", "a moat"]

    await store.database.execute_once("select eventstore.erase($1)", stream)

    after = await store.log.read_stream(stream)
    assert [one.private for one in after] == [None, None]
    assert [one.hash for one in after] == [one.hash for one in before]
    previous = STREAM_GENESIS
    for one in after:
        assert event_hash(previous, one) == one.hash
        previous = one.hash


async def test_erasing_again_changes_nothing(store: Store) -> None:
    """Erasure is safe to repeat, and says how many events it changed."""
    stream = new_id()
    first = event(job_created(), private=PersonalText(prompt="a castle"))
    await store.log.commit(Batch(appends=[Append(stream=stream, category="job", expected=0, events=(first,))]))
    erased = "select eventstore.erase($1) as count"
    assert (await store.database.execute_once(erased, stream))[0]["count"] == 1
    assert (await store.database.execute_once(erased, stream))[0]["count"] == 0
