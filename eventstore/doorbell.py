"""Wakes whoever waits for the log or the outbox, in this process and in others.

A transaction that issues NOTIFY takes a database-wide lock at commit, so no append ever does. After its commit a
process rings: a NOTIFY that carries no data, on a connection of its own, at most one in flight. A lost ring costs its
listeners one poll interval; polling is the truth.
"""

import asyncio
from collections.abc import Awaitable, Callable

import asyncpg
import structlog

from eventstore.database import Backoff, Database
from eventstore.errors import DatabaseUnavailable

CHANNEL = "dreamforge"
# Losing a ring in a crash is harmless, so it need not wait for the disk. For this transaction alone: behind a pooler
# the next one on the same server connection may be an append.
_RING = f"select set_config('synchronous_commit', 'off', true), pg_notify('{CHANNEL}', '')"  # a constant
_log = structlog.get_logger(__name__)


class Waiter:
    """One sleeper: remembers a ring that came while it was busy."""

    def __init__(self) -> None:
        self._rung = asyncio.Event()

    def wake(self) -> None:
        """End the current or the next `wait`."""
        self._rung.set()

    async def wait(self, seconds: float) -> bool:
        """Sleep until woken, `seconds` at most. Answers whether it was woken."""
        try:
            async with asyncio.timeout(seconds):
                await self._rung.wait()
        except TimeoutError:
            return False
        self._rung.clear()
        return True


class Doorbell:
    """The doorbell of a process. `start` and `stop` may be called twice; the second call does nothing."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._waiters: set[Waiter] = set()
        self._dirty = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._own_pid = 0

    def waiter(self) -> Waiter:
        """A new sleeper; `forget` it when it's no longer needed."""
        waiter = Waiter()
        self._waiters.add(waiter)
        return waiter

    def forget(self, waiter: Waiter) -> None:
        """Wake this sleeper no more."""
        self._waiters.discard(waiter)

    def ring(self) -> None:
        """Wake every sleeper of this process at once, and soon those of the others. Call it after a commit."""
        self._wake_all()
        self._dirty.set()

    def start(self) -> None:
        """Begin to carry rings to other processes, and to hear theirs where the database can be listened to."""
        if self._tasks:
            return
        self._tasks.append(asyncio.create_task(self._forever(self._notify), name="doorbell-notify"))
        if self._database.listen_url is not None:
            self._tasks.append(asyncio.create_task(self._forever(self._listen), name="doorbell-listen"))

    async def stop(self) -> None:
        """Stop both."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _wake_all(self) -> None:
        for waiter in self._waiters:
            waiter.wake()

    async def _forever(self, work: Callable[[Backoff], Awaitable[None]]) -> None:
        backoff = Backoff()
        while True:
            try:
                await work(backoff)
            except Exception as error:  # noqa: BLE001  # rings must go on, whatever it was
                if backoff.failures == 0:
                    foreseen = isinstance(
                        error, DatabaseUnavailable | OSError | asyncpg.PostgresError | asyncpg.InterfaceError
                    )
                    _log.warning("doorbell is silent, polling goes on", error=str(error), exc_info=not foreseen)
                await backoff.wait()

    async def _notify(self, backoff: Backoff) -> None:
        connection = await self._database.dedicated()
        try:
            self._own_pid = connection.get_server_pid()
            while True:
                await self._dirty.wait()
                self._dirty.clear()
                await connection.execute(_RING, timeout=10)
                backoff.reset()
        finally:
            await _close(connection)

    async def _listen(self, backoff: Backoff) -> None:
        connection = await self._database.dedicated(self._database.listen_url)
        try:
            gone = asyncio.Event()
            connection.add_termination_listener(lambda _: gone.set())
            await connection.add_listener(CHANNEL, self._heard)
            backoff.reset()
            self._wake_all()
            await gone.wait()
            raise DatabaseUnavailable("the connection that listens was closed")
        finally:
            await _close(connection)

    def _heard(self, _connection: object, pid: int, _channel: str, _payload: object) -> None:
        if pid != self._own_pid:
            self._wake_all()


async def _close(connection: asyncpg.Connection) -> None:
    try:
        await connection.close(timeout=1)
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
        connection.terminate()
