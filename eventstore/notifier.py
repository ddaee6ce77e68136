"""Notifies tasks of this process and of others that the log or the outbox has changed.

A transaction that issues NOTIFY takes a database-wide lock at commit, so no append issues one. After its commit a
process sends a NOTIFY without data on a separate connection, at most one at a time. A lost notification delays its
listeners by one poll interval: correctness depends on polling alone.
"""

import asyncio
from collections.abc import Awaitable, Callable

import asyncpg
import structlog

from eventstore.database import Backoff, Database
from eventstore.errors import DatabaseUnavailable

NOTIFY_CHANNEL = "dreamforge"
# A notification may be lost in a crash, so it need not wait for the disk. Set for this transaction alone: behind a
# pooler the next one on the same server connection may be an append.
_NOTIFY_SQL = f"select set_config('synchronous_commit', 'off', true), pg_notify('{NOTIFY_CHANNEL}', '')"  # a constant
_log = structlog.get_logger(__name__)


class WakeSignal:
    """Wakes one task; a notification that comes while the task is busy ends its next wait."""

    def __init__(self) -> None:
        self._notified = asyncio.Event()

    def wake(self) -> None:
        """End the current or the next `wait`."""
        self._notified.set()

    async def wait(self, timeout_s: float) -> bool:
        """Wait until woken, for at most `timeout_s`. Returns whether it was woken."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._notified.wait()
        except TimeoutError:
            return False
        self._notified.clear()
        return True


class Notifier:
    """The notifier of a process. `start` and `stop` may be called twice; the second call does nothing."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._wake_signals: set[WakeSignal] = set()
        self._dirty = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._own_pid = 0

    def add_wake_signal(self) -> WakeSignal:
        """Add a wake signal; `remove_wake_signal` it when it is no longer needed."""
        wake_signal = WakeSignal()
        self._wake_signals.add(wake_signal)
        return wake_signal

    def remove_wake_signal(self, wake_signal: WakeSignal) -> None:
        """Stop waking this signal's task."""
        self._wake_signals.discard(wake_signal)

    def notify(self) -> None:
        """Wake every waiting task of this process now, and those of other processes soon. Call it after a commit."""
        self._wake_all()
        self._dirty.set()

    def start(self) -> None:
        """Start to notify other processes, and to listen to them unless LISTEN is turned off."""
        if self._tasks:
            return
        self._tasks.append(asyncio.create_task(self._repeat_forever(self._send_notifications), name="notifier-send"))
        if self._database.listen_url is not None:
            self._tasks.append(asyncio.create_task(self._repeat_forever(self._listen), name="notifier-listen"))

    async def stop(self) -> None:
        """Stop sending and listening."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _wake_all(self) -> None:
        for wake_signal in self._wake_signals:
            wake_signal.wake()

    async def _repeat_forever(self, attempt: Callable[[Backoff], Awaitable[None]]) -> None:
        backoff = Backoff()
        while True:
            try:
                await attempt(backoff)
            except Exception as error:  # noqa: BLE001  # notifications must continue after any error
                if backoff.failures == 0:
                    foreseen = isinstance(
                        error, DatabaseUnavailable | OSError | asyncpg.PostgresError | asyncpg.InterfaceError
                    )
                    _log.warning("notifier failed, polling continues", error=str(error), exc_info=not foreseen)
                await backoff.wait()

    async def _send_notifications(self, backoff: Backoff) -> None:
        connection = await self._database.connect_dedicated()
        try:
            self._own_pid = connection.get_server_pid()
            while True:
                await self._dirty.wait()
                self._dirty.clear()
                await connection.execute(_NOTIFY_SQL, timeout=10)
                backoff.reset()
        finally:
            await _close_connection(connection)

    async def _listen(self, backoff: Backoff) -> None:
        connection = await self._database.connect_dedicated(self._database.listen_url)
        try:
            gone = asyncio.Event()
            connection.add_termination_listener(lambda _: gone.set())
            await connection.add_listener(NOTIFY_CHANNEL, self._on_notification)
            backoff.reset()
            self._wake_all()
            await gone.wait()
            raise DatabaseUnavailable("the connection that listens was closed")
        finally:
            await _close_connection(connection)

    def _on_notification(self, _connection: object, pid: int, _channel: str, _payload: object) -> None:
        if pid != self._own_pid:
            self._wake_all()


async def _close_connection(connection: asyncpg.Connection) -> None:
    try:
        await connection.close(timeout=1)
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
        connection.terminate()
