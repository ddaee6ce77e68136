"""Connections that are kept between statements: few, sound, and there for whoever waits."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from eventstore.database import Database
from eventstore.errors import DatabaseUnavailable
from tests.pooler import listens

if not listens():
    pytest.skip("behind a pooler, the server's processes are the pooler's", allow_module_level=True)

BACKEND = "select pg_backend_pid() as pid"


@pytest.fixture
async def database(db_url: str) -> AsyncIterator[Database]:
    """Two connections at most."""
    database = Database(db_url, max_connections=2)
    yield database
    await database.close()


async def backends(database: Database, statements: int, sql: str = BACKEND) -> set[int]:
    """The server processes that ran some statements at once."""
    found = await asyncio.gather(*(database.execute_once(sql) for _ in range(statements)))
    return {row["pid"] for [row] in found}


async def test_statements_share_the_connections_there_may_be(database: Database) -> None:
    """Given statements one after the other, then one connection runs them; at once, no more than there may be."""
    assert len({row["pid"] for _ in range(5) for row in await database.execute_once(BACKEND)}) == 1
    assert len(await backends(database, 20, f"{BACKEND} from pg_sleep(0.02)")) == 2
    assert len(await backends(database, 20)) <= 2


async def test_a_transaction_gets_a_connection_that_statements_have_kept(database: Database) -> None:
    """Given both connections kept, and then in use, then a transaction has one of them as soon as it is free."""
    kept = await backends(database, 2, f"{BACKEND} from pg_sleep(0.02)")
    busy = [asyncio.create_task(database.execute_once("select pg_sleep(0.1)")) for _ in range(10)]
    await asyncio.sleep(0)
    async with database.transaction() as connection:
        assert await connection.fetchval(BACKEND) in kept
    await asyncio.gather(*busy)


async def test_a_connection_that_broke_is_replaced(database: Database, db_url: str) -> None:
    """Given a kept connection that the server ended, then a read goes on with another."""
    [row] = await database.execute_once(BACKEND)
    other = Database(db_url)
    await other.execute_once("select pg_terminate_backend($1)", row["pid"])
    await other.close()
    assert (await database.read(BACKEND))[0]["pid"] != row["pid"]


async def test_a_statement_that_fails_leaves_a_sound_connection(database: Database) -> None:
    """Given a statement that fails, and one whose time is up, then the next ones run as ever."""
    with pytest.raises(Exception, match="division by zero"):
        await database.execute_once("select 1 / 0")
    with pytest.raises(DatabaseUnavailable, match=r"0\.05 s"):
        await database.execute_once("select pg_sleep(5)", seconds=0.05)
    assert len(await backends(database, 20)) <= 2


async def test_connections_that_are_not_needed_any_more_are_given_back(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given two kept connections, one of them idle for too long, then the pool has it, and may close it."""
    await backends(database, 2, f"{BACKEND} from pg_sleep(0.02)")
    pool = database._pool
    assert pool is not None
    assert len(pool._kept) == 2
    monkeypatch.setattr("eventstore.pool._MAX_IDLE_S", 0.0)
    await database.execute_once(BACKEND)
    assert len(pool._kept) == 1
