"""Invariant 5: anyone can recompute the chains, and any change breaks them."""

from uuid import UUID

import pytest
from msgspec.structs import replace

from eventstore.events import RecordedEvent
from eventstore.integrity.chain import STREAM_GENESIS, chain_genesis, event_chain, event_hash
from eventstore.log import Append, Batch
from orchestrator.events import PersonalText
from tests.kit import Store, connect, event, job_created, some_append, stream_in


def broken(log_id: UUID, events: list[RecordedEvent]) -> list[int]:
    """The positions of one partition at which a chain does not verify."""
    bad: list[int] = []
    chain = chain_genesis(log_id, events[0].partition)
    hashes: dict[UUID, bytes] = {}
    for one in events:
        link = event_hash(hashes.get(one.stream_id, STREAM_GENESIS), one)
        chain = event_chain(chain, one)
        if link != one.hash or chain != one.chain:
            bad.append(one.position)
        hashes[one.stream_id], chain = one.hash, one.chain
    return bad


async def written(store: Store) -> tuple[UUID, list[RecordedEvent]]:
    """A partition with two streams interleaved, private text and text beyond ASCII among it."""
    first, second = stream_in(4), stream_in(4)
    prompt = PersonalText(prompt="ein Schloß, 城, 🏰", metadata={"k": "v"})
    await store.log.commit(
        Batch(
            appends=[Append(stream=first, category="job", expected=0, events=(event(job_created(), private=prompt),))]
        )
    )
    await store.log.commit(Batch(appends=[some_append(second), some_append(first, expected=1, count=2)]))
    await store.log.commit(Batch(appends=[some_append(second, expected=1)]))
    log_id = (await store.database.read("select log_id from eventstore.log"))[0]["log_id"]
    return log_id, (await store.log.read_after({4: 0}, limit=100))[4]


async def test_the_database_and_the_formulas_agree(store: Store) -> None:
    """Given a partition as the database wrote it, then every hash and chain verifies from the genesis on."""
    log_id, events = await written(store)
    assert len(events) == 5
    assert broken(log_id, events) == []


CHANGES = {
    "data": "{}",
    "meta": '{"request_id":"x"}',
    "code": "step.finish",
    "tenant": "other",
    "category": "model",
    "schema_version": 2,
    "version": 7,
    "private_digest": b"",
    "hash": b"\0" * 32,
    "chain": b"\0" * 32,
}


@pytest.mark.parametrize("field", CHANGES)
async def test_a_changed_field_breaks_the_chain_where_it_stands(store: Store, field: str) -> None:
    """Given any single field changed, then verification names that position first."""
    log_id, events = await written(store)
    events[2] = replace(events[2], **{field: CHANGES[field]})
    assert broken(log_id, events)[0] == 3


async def test_a_removed_or_swapped_event_breaks_the_chain(store: Store) -> None:
    """Removing or reordering is as visible as changing."""
    log_id, events = await written(store)
    assert broken(log_id, events[:1] + events[2:]) != []
    assert broken(log_id, [events[1], events[0], *events[2:]]) != []


async def test_text_is_hashed_as_it_came(store: Store, db_url: str) -> None:
    """Blanks and the order of keys survive storage, since a hash covers the text."""
    connection = await connect(db_url)
    text = '[{"stream":"018f0000-0000-7000-8000-000000000004","category":"job","tenant":"t","expected":0,"events":[{"event_id":"018f0000-0000-7000-8000-00000000000a","code":"x","schema_version":1,"ts":"2026-01-01T00:00:00Z","data":"{ \\"b\\" : 1,  \\"a\\":2 }","meta":"{}","private":null}]}]'  # noqa: E501  # one JSON text
    await connection.execute("select eventstore.commit($1::json)", text)
    stored = (await store.log.read_after({4: 0}, limit=1))[4][0]
    assert stored.data == '{ "b" : 1,  "a":2 }'
    log_id = (await store.database.read("select log_id from eventstore.log"))[0]["log_id"]
    assert broken(log_id, [stored]) == []
    await connection.close()
