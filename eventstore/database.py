"""Connections to PostgreSQL that reconnect by themselves."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar
from uuid import uuid4

import asyncpg
import structlog

from eventstore.errors import DatabaseAccessDenied, DatabaseUnavailable, SchemaMissing

T = TypeVar("T")

_STATEMENT_TIMEOUT_S = 60.0
# After a client is killed or cut off, the server goes on with its statement and keeps its locks.
_SERVER_TIMEOUT_SETTINGS = {"statement_timeout": "65s", "idle_in_transaction_session_timeout": "65s"}
# `replicated` needs the warning about a wait that was cut short, whatever the login's settings.
_WARNING_LEVEL_SETTING = {"client_min_messages": "warning"}
_UNAVAILABLE_ERRORS = (
    OSError,
    TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.OperatorInterventionError,  # shutdown, crash of another backend, starting up
    asyncpg.InsufficientResourcesError,  # too many connections, disk full
    asyncpg.TransactionRollbackError,  # a deadlock's victim
    asyncpg.ReadOnlySQLTransactionError,  # a standby that is being promoted
    asyncpg.ObjectNotInPrerequisiteStateError,  # a database that admits no connections for now
)
UNSTORABLE_VALUE_ERRORS = (
    ValueError,  # of the client: an argument, or a value of a COPY, that can't be encoded
    OverflowError,
    asyncpg.DataError,
    asyncpg.IntegrityConstraintViolationError,
    asyncpg.CardinalityViolationError,
    asyncpg.ProgramLimitExceededError,
)
"""Errors of values that PostgreSQL can't store: a retry fails again."""
_CONNECTION_DENIED_ERRORS = (
    asyncpg.InvalidAuthorizationSpecificationError,  # wrong password included
    asyncpg.InvalidCatalogNameError,
    asyncpg.exceptions.ClientConfigurationError,
)
_PRIVILEGE_DENIED_ERRORS = (asyncpg.InsufficientPrivilegeError,)
_SCHEMA_MISSING_ERRORS = (asyncpg.InvalidSchemaNameError, asyncpg.UndefinedTableError, asyncpg.UndefinedFunctionError)

_log = structlog.get_logger(__name__)


class _Connection(asyncpg.Connection):  # type: ignore[misc]  # asyncpg ships no types
    """A connection of the pool. Every use is one statement that leaves no session state behind."""

    def _get_unique_id(self, prefix: str) -> str:
        """A name for a prepared statement or a cursor: asyncpg's are unique within a client, and a pooler has many."""
        return f"__asyncpg_{prefix}_{uuid4().hex}__"

    def get_reset_query(self) -> str:
        """Nothing to reset; asyncpg's default would double the round trips."""
        return ""


class Database:
    """A pool of connections. Reads are tried once more on a fresh connection; nothing else is repeated here.

    url: PostgreSQL URL. listen_url: one that reaches the server directly, for LISTEN; None turns LISTEN off.
    pooled: the URL leads through a pooler in transaction mode, so statements must not be cached by the client.
    time_limited: the server, too, ends a statement that takes over a minute, and a transaction left open for as long.
    """

    def __init__(
        self,
        url: str,
        *,
        listen_url: str | None = None,
        max_connections: int = 8,
        pooled: bool = False,
        time_limited: bool = True,
        application_name: str = "dreamforge",
    ) -> None:
        self.url = url
        self.listen_url = listen_url
        self.pooled = pooled
        self._size = max_connections
        self._role = application_name
        self._statement_cache_size = 0 if pooled else 100
        self._session = {"timezone": "UTC", "application_name": application_name}
        if not pooled:  # a pooler rejects parameters that it can't pass on
            self._session |= _WARNING_LEVEL_SETTING | (_SERVER_TIMEOUT_SETTINGS if time_limited else {})
        self._command_timeout_s: float | None = _STATEMENT_TIMEOUT_S if time_limited else None
        self._pool: asyncpg.Pool | None = None
        self._closed = False
        self._opening = asyncio.Lock()

    async def _open_pool(self) -> asyncpg.Pool:
        if self._closed:
            raise DatabaseUnavailable("the database was closed, since the process stops")
        if self._pool is None:
            async with self._opening:
                if self._pool is None:
                    self._pool = await asyncpg.create_pool(
                        self.url,
                        connection_class=_Connection,
                        min_size=0,
                        max_size=self._size,
                        timeout=10,
                        command_timeout=self._command_timeout_s,
                        statement_cache_size=self._statement_cache_size,
                        server_settings=self._session,
                        init=_expect_warnings_enabled if self.pooled else None,
                    )
        return self._pool

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[asyncpg.pool.PoolConnectionProxy]:
        """A connection of the pool; failures of the connection or the server become `DatabaseUnavailable`."""
        try:
            pool = await self._open_pool()
            async with pool.acquire(timeout=10) as connection:
                yield connection
        except _CONNECTION_DENIED_ERRORS as error:
            raise DatabaseAccessDenied(f"PostgreSQL denies access: {error}; see DF_DB_URL") from error
        except _UNAVAILABLE_ERRORS as error:
            if isinstance(error, ValueError):
                raise  # an argument that can't be encoded; a retry would never succeed
            raise DatabaseUnavailable(f"PostgreSQL: {error or type(error).__name__}") from error
        except _PRIVILEGE_DENIED_ERRORS as error:
            raise DatabaseAccessDenied(
                f"PostgreSQL denies access: {error}; `dreamforge schema install` needs the database's owner, the "
                "service a login that was granted dreamforge_service"
            ) from error
        except _SCHEMA_MISSING_ERRORS as error:
            raise SchemaMissing(f"{error}; run `dreamforge schema install`") from error

    async def execute_once(self, sql: str, *args: object, seconds: float | None = None) -> list[asyncpg.Record]:
        """Run one statement, once, in a transaction of its own.

        seconds: bounds all of it, the wait for a connection too; if not given, the statement alone has 60.
        """
        if seconds is None:
            return await self._execute_once(sql, *args)
        try:
            return await run_with_time_limit(seconds, self._execute_once(sql, *args))
        except TimeoutError:
            raise DatabaseUnavailable(f"PostgreSQL did not answer within {seconds:g} s") from None

    async def _execute_once(self, sql: str, *args: object) -> list[asyncpg.Record]:
        async with self.connection() as connection, expect_replicated(connection):
            return await connection.fetch(sql, *args)  # type: ignore[no-any-return]  # asyncpg ships no types

    async def read(self, sql: str, *args: object) -> list[asyncpg.Record]:
        """Run one reading statement; once more if the connection turns out to be dead, as after a restart."""
        try:
            return await self.execute_once(sql, *args)
        except DatabaseUnavailable:
            return await self.execute_once(sql, *args)

    async def connect_dedicated(self, url: str | None = None) -> asyncpg.Connection:
        """A connection outside the pool, for LISTEN and NOTIFY; the caller closes it."""
        try:
            return await asyncpg.connect(
                url or self.url,
                timeout=10,
                statement_cache_size=self._statement_cache_size,
                server_settings={"application_name": self._role},
            )
        except _UNAVAILABLE_ERRORS as error:
            raise DatabaseUnavailable(f"PostgreSQL: {error or type(error).__name__}") from error

    async def close(self) -> None:
        """Close every connection; a statement under way gets two seconds. A second call does nothing."""
        self._closed = True
        pool, self._pool = self._pool, None
        if pool is None:
            return
        try:
            await asyncio.wait_for(pool.close(), 2)
        except (TimeoutError, *_UNAVAILABLE_ERRORS):
            pool.terminate()


class DatabaseWithDeadline(Database):
    """Wraps a `Database`; reads raise `DatabaseUnavailable` after `seconds`. Calls are passed on unchanged."""

    def __init__(self, database: Database, seconds: float) -> None:
        super().__init__(database.url)
        self._database = database
        self._seconds = seconds

    async def execute_once(self, sql: str, *args: object, seconds: float | None = None) -> list[asyncpg.Record]:
        """Run one statement on the wrapped database."""
        return await self._database.execute_once(sql, *args, seconds=seconds)

    async def read(self, sql: str, *args: object) -> list[asyncpg.Record]:
        """Run one reading statement on the wrapped database, within the deadline."""
        try:
            return await run_with_time_limit(self._seconds, self._database.read(sql, *args))
        except TimeoutError:
            raise DatabaseUnavailable(f"PostgreSQL did not answer within {self._seconds:g} s") from None


async def _expect_warnings_enabled(connection: asyncpg.Connection) -> None:
    if await connection.fetchval("show client_min_messages") == "error":
        raise DatabaseAccessDenied(
            "PostgreSQL sends no warnings to this login (client_min_messages = error), so a commit that is on no "
            "standby can't be detected: `alter role … set client_min_messages = 'warning'`"
        )


@asynccontextmanager
async def expect_replicated(connection: asyncpg.Connection) -> AsyncIterator[None]:
    """Raise `DatabaseUnavailable` at the end if a commit meanwhile was cut short while it waited for a standby.

    A cancelled wait (by a timeout, or by pg_cancel_backend) leaves the commit on this server, perhaps alone, and
    PostgreSQL reports success with a warning; if the server is lost then, so is the commit.
    """
    warnings: list[asyncpg.PostgresLogMessage] = []

    def on_message(_connection: object, message: asyncpg.PostgresLogMessage) -> None:
        # By its source file: the text is translated, and its code, 01000, is that of every other warning.
        if message.server_source_filename == "syncrep.c":
            warnings.append(message)

    connection.add_log_listener(on_message)
    try:
        yield
    finally:
        if not connection.is_closed():
            connection.remove_log_listener(on_message)
    if warnings:
        raise DatabaseUnavailable(f"PostgreSQL: {warnings[0].message}: the commit may be on no standby yet")


async def run_with_time_limit(seconds: float, work: Coroutine[Any, Any, T]) -> T:
    """Await some work for at most `seconds`, then raise TimeoutError.

    asyncio.timeout waits for the cancelled task to end, and asyncpg waits for the server to confirm the cancel: if the
    server hangs, without limit.
    """
    task = asyncio.create_task(work)
    try:
        await asyncio.wait({task}, timeout=seconds)
        if task.done():
            return task.result()
        raise TimeoutError
    finally:
        task.cancel()
        task.add_done_callback(_retrieve_exception)


def _retrieve_exception(task: asyncio.Task[Any]) -> None:
    if not task.cancelled():
        task.exception()


class Backoff:
    """Waiting times between tries: exponential with full jitter, from `first_s` up to `longest_s` seconds."""

    def __init__(self, first_s: float = 0.05, longest_s: float = 5.0) -> None:
        self._first = first_s
        self._longest = longest_s
        self.failures = 0

    def reset(self) -> None:
        """Record a success."""
        self.failures = 0

    async def wait(self) -> None:
        """Record a failure and wait."""
        ceiling = min(self._longest, self._first * 2 ** min(self.failures, 20))
        self.failures += 1
        await asyncio.sleep(ceiling * (0.5 + random.random() / 2))  # noqa: S311  # jitter, no secret


async def retry_until_available(what: str, attempt: Callable[[], Awaitable[T]]) -> T:
    """Repeat an attempt until the database is available. The attempt must be safe to repeat."""
    backoff = Backoff()
    while True:
        try:
            return await attempt()
        except DatabaseUnavailable as error:
            if backoff.failures % 10 == 0:
                _log.warning("database unavailable, trying again", what=what, error=str(error))
            await backoff.wait()


Row = Any
"""A row of a result: asyncpg ships no types."""
