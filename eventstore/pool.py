"""Hands out the connections of an asyncpg pool, and keeps those that come back for the next statement.

asyncpg's pool resets a connection and starts a task at each return: twice the work of a short statement. A statement in
autocommit leaves nothing to reset.
"""

import asyncio
from collections import deque
from typing import NamedTuple

import asyncpg

ACQUIRE_TIMEOUT_S = 10.0
_MAX_IDLE_S = 60.0


class _KeptConnection(NamedTuple):
    connection: asyncpg.pool.PoolConnectionProxy
    since_s: float


class StatementPool:
    """The connections of a pool, for one statement at a time. The pool must belong to this object alone."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool
        self._kept: deque[_KeptConnection] = deque()
        self._waiting = 0

    async def take(self) -> asyncpg.pool.PoolConnectionProxy:
        """A connection, the one that was used last if it is there. Waits for at most `ACQUIRE_TIMEOUT_S` seconds."""
        while self._kept:
            connection = self._kept.pop().connection
            if not connection.is_closed():
                return connection
            await self.discard(connection)
        self._waiting += 1
        try:
            return await self._pool.acquire(timeout=ACQUIRE_TIMEOUT_S)
        finally:
            self._waiting -= 1

    async def give_back(self, connection: asyncpg.pool.PoolConnectionProxy) -> None:
        """Give back a connection whose statement has ended well."""
        if self._waiting or connection.is_closed():
            await self.discard(connection)
            return
        now = asyncio.get_running_loop().time()
        self._kept.append(_KeptConnection(connection, now))
        if now - self._kept[0].since_s > _MAX_IDLE_S:
            await self.discard(self._kept.popleft().connection)

    async def discard(self, connection: asyncpg.pool.PoolConnectionProxy) -> None:
        """Give a connection back to asyncpg's pool, which resets it, or replaces it if it is broken."""
        await self._pool.release(connection, timeout=ACQUIRE_TIMEOUT_S)

    async def close(self, timeout_s: float) -> None:
        """Close every connection; statements under way get `timeout_s` seconds."""
        try:
            async with asyncio.timeout(timeout_s):
                while self._kept:
                    await self.discard(self._kept.pop().connection)
                await self._pool.close()
        except (TimeoutError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            self._pool.terminate()
