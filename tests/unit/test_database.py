"""Waiting for a database, and no longer than was said."""

import asyncio

import pytest

from eventstore.database import Database, DatabaseWithDeadline, run_with_time_limit
from eventstore.errors import DatabaseUnavailable


async def test_work_that_ends_in_time_is_answered() -> None:
    async def work() -> int:
        return 7

    assert await run_with_time_limit(5, work()) == 7


async def test_work_that_fails_in_time_fails() -> None:
    async def work() -> int:
        raise KeyError("gone")

    with pytest.raises(KeyError):
        await run_with_time_limit(5, work())


async def test_the_end_of_what_is_given_up_is_not_awaited() -> None:
    """Given work that takes its time to be cancelled, as asyncpg does with a server that hangs, then nobody waits."""
    ended = asyncio.Event()

    async def stubborn() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            await ended.wait()

    with pytest.raises(TimeoutError):
        await run_with_time_limit(0.01, stubborn())
    assert not ended.is_set()
    ended.set()


async def test_a_server_that_accepts_and_says_nothing_is_unavailable() -> None:
    """Given such a server, then a read with a deadline raises; one without would wait for as long as a connect may."""
    server = await asyncio.get_running_loop().create_server(asyncio.Protocol, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    database = Database(f"postgresql://nobody@127.0.0.1:{port}/nothing")
    with pytest.raises(DatabaseUnavailable, match=r"did not answer within 0\.1 s"):
        await DatabaseWithDeadline(database, 0.1).read("select 1")
    server.close()
    await database.close()
