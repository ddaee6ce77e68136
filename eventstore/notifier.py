"""Notifies tasks of this process and of others that the log has new events, or a queue has new commands.

A transaction that issues NOTIFY takes a database-wide lock at commit, so no append issues one. After its commit a
process sends a NOTIFY on each channel that has changed, all in one statement, which names nothing but the sender. A
lost notification delays its listeners by one poll interval: correctness depends on polling alone.

PostgreSQL up to 18 wakes every session of the database that listens to anything, at each NOTIFY. A process therefore
listens only while one of its tasks waits for what other processes do. It sends on a channel only while another one
listens to that, which it looks for a few times a second, and not if a task of its own takes what is announced.
"""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Iterable
from uuid import uuid4

import asyncpg
import structlog

from eventstore.database import Backoff, Database
from eventstore.errors import DatabaseUnavailable

LOG_CHANNEL = "df_log"
BUSY_GATHER_S = 0.02
"""How long a reader of the log waits for more events if its last read found several streams: fewer reads find all."""
# A notification may be lost in a crash, so it need not wait for the disk. Set for this transaction alone: behind a
# pooler the next one on the same server connection may be an append.
_NOTIFY_SQL = """
select set_config('synchronous_commit', 'off', true), pg_notify(channel, $2) from unnest($1::text[]) as channel
"""
# A session that listens to a channel holds a shared lock, which all others can see: 'drfl', and the channel's hash.
_SHOW_LISTENER_SQL = "select pg_advisory_lock_shared(1685218924, hashtext($1))"
_HIDE_LISTENER_SQL = "select pg_advisory_unlock_shared(1685218924, hashtext($1))"
_LISTENED_CHANNELS_SQL = """
select distinct channel from unnest($1::text[]) as channel
join pg_locks on objid::bigint = hashtext(channel)::bigint & 4294967295
where locktype = 'advisory' and classid = 1685218924 and objsubid = 2
and database = (select oid from pg_database where datname = current_database())
and pid is distinct from $2
"""
_LISTENERS_KNOWN_S = 0.2
_log = structlog.get_logger(__name__)


def queue_channel(queue: str) -> str:
    """The channel that announces new commands in a queue."""
    return f"df_q_{queue}"


class WakeSignal:
    """Wakes one task; a notification that comes while the task is busy ends its next wait.

    channels: whose notifications wake it. remote_delay_s: how long after other processes' notifications; None: those
    don't wake it. takes_all: whether this task takes what its process announces, so that no other process is notified.
    """

    def __init__(self, channels: Iterable[str] = (), remote_delay_s: float | None = 0.0) -> None:
        self.channels = frozenset(channels)
        self.remote_delay_s = remote_delay_s
        self.takes_all = False
        self._untold: set[str] = set()
        self._notified = asyncio.Event()
        self._woken = False

    def wake(self) -> None:
        """End the current or the next `wait`."""
        self._woken = True
        self._notified.set()

    def take(self, channels: set[str]) -> set[str]:
        """Of some channels those whose notifications this task takes alone, if it takes all."""
        taken = channels & self.channels if self.takes_all else set()
        self._untold |= taken
        return taken

    def take_untold(self) -> set[str]:
        """The channels of notifications that were taken since the last call, which no other process was told of."""
        untold, self._untold = self._untold, set()
        return untold

    def interrupt(self) -> None:
        """End the current or the next `wait` as a timeout does. One timer can so serve many waits."""
        self._notified.set()

    async def wait(self, timeout_s: float | None = None, *, gather_s: float = 0.0) -> bool:
        """Wait until woken, for at most `timeout_s` if given. Returns whether it was woken.

        gather_s: how much longer to wait then, so that one turn serves what comes meanwhile.
        """
        try:
            # Without a timer where none is needed: it would cost more than the wait.
            if timeout_s is None or self._notified.is_set():
                await self._notified.wait()
            else:
                async with asyncio.timeout(timeout_s):
                    await self._notified.wait()
        except TimeoutError:
            return False
        if gather_s:
            await asyncio.sleep(gather_s)
        self._notified.clear()
        woken, self._woken = self._woken, False
        return woken


class Notifier:
    """The notifier of a process. `start` and `stop` may be called twice; the second call does nothing."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._wake_signals: set[WakeSignal] = set()
        self._unsent_channels: set[str] = set()
        self._unsent = asyncio.Event()
        self._signals_changed = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._id = uuid4().hex
        self._listening_pid: int | None = None
        self._known_channels: set[str] = set()
        self._listened_channels: set[str] = set()
        self._looked_at = -math.inf

    @property
    def can_listen(self) -> bool:
        """Whether other processes' notifications can reach this one: not if LISTEN is turned off."""
        return self._database.listen_url is not None

    def add_wake_signal(self, *channels: str, remote_delay_s: float | None = 0.0) -> WakeSignal:
        """Add a wake signal; `remove_wake_signal` when it is no longer needed."""
        wake_signal = WakeSignal(channels, remote_delay_s)
        self._wake_signals.add(wake_signal)
        self._signals_changed.set()
        return wake_signal

    def remove_wake_signal(self, wake_signal: WakeSignal) -> None:
        """Stop waking this signal's task."""
        self._wake_signals.discard(wake_signal)
        self._signals_changed.set()

    def set_remote_delay(self, wake_signal: WakeSignal, delay_s: float | None) -> None:
        """Let other processes' notifications wake the signal after `delay_s` seconds, or with None not at all."""
        if wake_signal.remote_delay_s != delay_s:
            wake_signal.remote_delay_s = delay_s
            self._signals_changed.set()

    def notify(self, channels: Iterable[str]) -> None:
        """Wake the tasks of this process that wait for a channel now, and those of others soon. Call after a commit."""
        changed = set(channels)
        self._wake(changed)
        self.notify_others(changed.difference(*(wake_signal.take(changed) for wake_signal in self._wake_signals)))

    def notify_others(self, channels: Iterable[str]) -> None:
        """Wake the tasks of other processes that wait for a channel."""
        self._unsent_channels.update(channels)
        if self._unsent_channels:
            self._unsent.set()

    def start(self) -> None:
        """Start to notify other processes, and to listen to them unless LISTEN is turned off."""
        if self._tasks:
            return
        self._tasks.append(asyncio.create_task(self._repeat_forever(self._send_notifications), name="notifier-send"))
        if self.can_listen:
            self._tasks.append(asyncio.create_task(self._repeat_forever(self._listen), name="notifier-listen"))

    async def stop(self) -> None:
        """Stop sending and listening."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _wake(self, channels: set[str]) -> None:
        for wake_signal in self._wake_signals:
            if not channels.isdisjoint(wake_signal.channels):
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
        while True:
            await self._unsent.wait()
            self._unsent.clear()
            channels, self._unsent_channels = self._unsent_channels, set()
            if listened := await self._listened_by_others(channels):
                await self._database.execute_once(_NOTIFY_SQL, list(listened), self._id, seconds=10)
            backoff.reset()

    async def _listened_by_others(self, channels: set[str]) -> set[str]:
        """Those channels that another process listens to. One that has begun since the last look polls meanwhile."""
        if time.monotonic() - self._looked_at >= _LISTENERS_KNOWN_S or not channels <= self._known_channels:
            self._known_channels |= channels
            arguments = (list(self._known_channels), self._listening_pid)
            rows = await self._database.execute_once(_LISTENED_CHANNELS_SQL, *arguments, seconds=10)
            self._listened_channels, self._looked_at = {row["channel"] for row in rows}, time.monotonic()
        return channels & self._listened_channels

    def _wanted_channels(self) -> set[str]:
        """The channels on which other processes' notifications wake a task of this one."""
        return {
            channel
            for wake_signal in self._wake_signals
            if wake_signal.remote_delay_s is not None
            for channel in wake_signal.channels
        }

    async def _listen(self, backoff: Backoff) -> None:
        """Hold a connection that listens while there is a channel to listen to."""
        while not self._wanted_channels():
            await self._signals_changed.wait()
            self._signals_changed.clear()
        connection = await self._database.connect_dedicated(self._database.listen_url)
        listened: set[str] = set()
        try:
            self._listening_pid = connection.get_server_pid()
            connection.add_termination_listener(lambda _: self._signals_changed.set())
            while wanted := self._wanted_channels():
                for channel in wanted - listened:
                    await connection.execute(_SHOW_LISTENER_SQL, channel)
                    await connection.add_listener(channel, self._on_notification)
                for channel in listened - wanted:
                    await connection.execute(_HIDE_LISTENER_SQL, channel)
                    await connection.remove_listener(channel, self._on_notification)
                self._wake(wanted - listened)  # of what came before
                listened = wanted
                backoff.reset()
                await self._signals_changed.wait()
                self._signals_changed.clear()
                if connection.is_closed():
                    raise DatabaseUnavailable("the connection that listens was closed")
        finally:
            self._listening_pid = None
            await _close_connection(connection)

    def _on_notification(self, _connection: object, _pid: int, channel: str, sender_id: object) -> None:
        if sender_id == self._id:
            return
        for wake_signal in self._wake_signals:
            if channel in wake_signal.channels and wake_signal.remote_delay_s is not None:
                asyncio.get_running_loop().call_later(wake_signal.remote_delay_s, wake_signal.wake)


async def _close_connection(connection: asyncpg.Connection) -> None:
    try:
        await connection.close(timeout=1)
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
        connection.terminate()
