"""The keys of a log as a server holds them."""

import asyncio
from typing import Literal
from uuid import UUID

import pytest

from eventstore.errors import DatabaseUnavailable
from eventstore.ids import new_id
from eventstore.log import Append, Batch
from orchestrator.events import DomainEvent, KeyCreated, KeyRevoked, Scope
from projections.key_queries import ApiKeys
from projections.keys import key_text_digest, make_key_text
from tests.kit import Store, event


async def append(store: Store, key_id: UUID, body: DomainEvent, *, expected: int = 0, tenant: str = "acme") -> None:
    """One event of a key."""
    one = Append(stream=key_id, category="key", tenant=tenant, expected=expected, events=(event(body),))
    assert (await store.log.commit(Batch(appends=[one]))).streams[key_id].committed


async def made(store: Store, *scopes: Scope, tenant: str = "acme") -> tuple[UUID, str]:
    """A new key, and its text."""
    key_id = new_id()
    text = make_key_text(key_id, "s" * 43)
    await append(store, key_id, KeyCreated(name="ci", scopes=list(scopes), digest=key_text_digest(text)), tenant=tenant)
    return key_id, text


async def test_a_key_opens_until_it_is_revoked(store: Store) -> None:
    key_id, text = await made(store, "jobs")
    keys = ApiKeys(store.log, max_age_s=0)
    found = await keys.authenticate(text)
    assert found is not None
    assert (found.key_id, found.tenant, sorted(found.scopes)) == (key_id, "acme", ["jobs"])
    await append(store, key_id, KeyRevoked(), expected=1)
    assert await keys.authenticate(text) is None
    assert await keys.active_key(key_id) is None
    assert [key.key_id for key in await keys.list_keys()] == [key_id]


async def test_a_key_with_another_secret_or_of_nobody_opens_nothing(store: Store) -> None:
    key_id, _ = await made(store, "jobs")
    keys = ApiKeys(store.log)
    for text in (make_key_text(key_id, "t" * 43), make_key_text(new_id(), "s" * 43), "", "df_"):
        assert await keys.authenticate(text) is None


async def test_the_last_known_keys_hold_while_the_database_is_away(store: Store) -> None:
    _, text = await made(store, "jobs")
    keys = ApiKeys(store.log, max_age_s=0)
    assert await keys.authenticate(text) is not None
    await store.database.close()
    assert await keys.authenticate(text) is not None
    assert await keys.authenticate(make_key_text(new_id(), "s" * 43)) is None


async def test_a_revoked_key_does_not_slip_in_with_a_crowd(store: Store) -> None:
    """However old what was read is, nobody is let in by it while it is read again."""
    key_id, text = await made(store, "jobs")
    keys = ApiKeys(store.log, max_age_s=0)
    assert await keys.authenticate(text) is not None
    await append(store, key_id, KeyRevoked(), expected=1)
    assert await asyncio.gather(*(keys.authenticate(text) for _ in range(20))) == [None] * 20


@pytest.fixture
def reads(store: Store, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows by one with each read of all keys."""
    found: list[str] = []
    category = store.log.read_category

    async def counted(name: Literal["key"]) -> object:
        found.append(name)
        return await category(name)

    monkeypatch.setattr(store.log, "read_category", counted)
    return found


async def test_a_crowd_asks_the_database_once(store: Store, reads: list[str]) -> None:
    """Made-up keys included; what is no key at all asks for nothing."""
    _, text = await made(store, "jobs")
    keys = ApiKeys(store.log, max_age_s=3600)
    assert await keys.authenticate("no key") is None
    assert reads == []
    shown = [text, *(make_key_text(new_id(), "s" * 43) for _ in range(200))]
    found = await asyncio.gather(*(keys.authenticate(one) for one in shown))
    assert [one is not None for one in found] == [True] + [False] * 200
    assert reads == ["key"]


async def test_keys_that_were_never_read_let_nobody_in(store: Store, reads: list[str]) -> None:
    """Everybody is told at once that the database is away, not that the key is wrong, and not one after the other."""
    _, text = await made(store, "jobs")
    await store.database.close()
    keys = ApiKeys(store.log)
    answers = await asyncio.gather(*(keys.authenticate(text) for _ in range(20)), return_exceptions=True)
    assert {type(answer) for answer in answers} == {DatabaseUnavailable}
    assert reads == ["key"]


async def test_keys_are_listed_by_tenant_and_age(store: Store) -> None:
    ids = [(await made(store, "jobs", tenant=tenant))[0] for tenant in ("b", "a", "b")]
    assert [key.key_id for key in await ApiKeys(store.log).list_keys()] == [ids[1], ids[0], ids[2]]
