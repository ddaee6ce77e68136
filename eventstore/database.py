"""Connections to PostgreSQL that reconnect by themselves."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar
from uuid import uuid4

import asyncpg
import structlog

from eventstore.errors import DatabaseAccessDenied, DatabaseUnavailable, EventStoreError, SchemaMissing
from eventstore.pool import StatementPool

T = TypeVar("T")

_STATEMENT_TIMEOUT_S = 60.0
_CONNECT_TIMEOUT_S = 10.0
_CLOSE_TIMEOUT_S = 2.0
# After a client is killed or cut off, the server goes on with its statement and keeps its locks.
_SERVER_TIMEOUT_SETTINGS = {"statement_timeout": "65s", "idle_in_transaction_session_timeout": "65s"}
# `_ExpectReplicated` needs the warning about a wait that was cut short, whatever the login's settings.
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
    """A connection of the pool. Every use is one statement that leaves no session state behind.

    aborted_waits: the server's warnings of commits whose wait for a standby was cut short.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.aborted_waits: list[str] = []

    def _process_log_message(self, fields: dict[str, str], last_query: str) -> None:
        """Keep the server's warnings; asyncpg's listeners would have to be added and removed at every statement."""
        # By its source file: the text is translated, and its code, 01000, is that of every other warning.
        if fields.get("F") == "syncrep.c":
            self.aborted_waits.append(fields["M"])
        super()._process_log_message(fields, last_query)

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
        self._pool: StatementPool | None = None
        self._closed = False
        self._opening = asyncio.Lock()

    async def _open_pool(self) -> StatementPool:
        if self._closed:
            raise DatabaseUnavailable("the database was closed, since the process stops")
        if self._pool is None:
            async with self._opening:
                if self._pool is None:
                    pool = await asyncpg.create_pool(
                        self.url,
                        connection_class=_Connection,
                        min_size=0,
                        max_size=self._size,
                        timeout=_CONNECT_TIMEOUT_S,
                        command_timeout=self._command_timeout_s,
                        statement_cache_size=self._statement_cache_size,
                        server_settings=self._session,
                        init=_expect_warnings_enabled if self.pooled else None,
                    )
                    self._pool = StatementPool(pool)
        return self._pool

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[asyncpg.pool.PoolConnectionProxy]:
        """A connection of the pool; failures of the connection or the server become `DatabaseUnavailable`."""
        with _TRANSLATED_ERRORS:
            pool = await self._open_pool()
            connection = await pool.take()
            try:
                yield connection
            finally:
                await pool.discard(connection)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[asyncpg.pool.PoolConnectionProxy]:
        """A transaction on a connection of the pool, committed at the end; errors as those of `connection`."""
        async with self.connection() as connection:
            with _ExpectReplicated(connection):
                async with connection.transaction():
                    yield connection

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
        with _TRANSLATED_ERRORS:
            pool = await self._open_pool()
            connection = await pool.take()
            try:
                with _ExpectReplicated(connection):
                    rows: list[asyncpg.Record] = await connection.fetch(sql, *args)
            except BaseException:
                await pool.discard(connection)
                raise
            await pool.give_back(connection)
            return rows

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
                timeout=_CONNECT_TIMEOUT_S,
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
        await pool.close(_CLOSE_TIMEOUT_S)


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


class _ErrorTranslation:
    """Raises asyncpg's errors as this package's."""

    def __enter__(self) -> None:
        """Begin."""

    def __exit__(self, _type: object, error: BaseException | None, _traceback: object) -> None:
        """Raise the translation, if there is one."""
        translated = None if error is None else _translate_error(error)
        if translated is not None:
            raise translated from error


_TRANSLATED_ERRORS = _ErrorTranslation()


def _translate_error(error: BaseException) -> EventStoreError | None:
    """The error of this package for one of asyncpg's or of the connection; None if there is none."""
    if isinstance(error, _CONNECTION_DENIED_ERRORS):
        return DatabaseAccessDenied(f"PostgreSQL denies access: {error}; see DF_DB_URL")
    if isinstance(error, _UNAVAILABLE_ERRORS):
        if isinstance(error, ValueError):
            return None  # an argument that can't be encoded; a retry would never succeed
        return DatabaseUnavailable(f"PostgreSQL: {error or type(error).__name__}")
    if isinstance(error, _PRIVILEGE_DENIED_ERRORS):
        return DatabaseAccessDenied(
            f"PostgreSQL denies access: {error}; `dreamforge schema install` needs the database's owner, the "
            "service a login that was granted dreamforge_service"
        )
    if isinstance(error, _SCHEMA_MISSING_ERRORS):
        return SchemaMissing(f"{error}; run `dreamforge schema install`")
    return None


async def _expect_warnings_enabled(connection: asyncpg.Connection) -> None:
    if await connection.fetchval("show client_min_messages") == "error":
        raise DatabaseAccessDenied(
            "PostgreSQL sends no warnings to this login (client_min_messages = error), so a commit that is on no "
            "standby can't be detected: `alter role … set client_min_messages = 'warning'`"
        )


class _ExpectReplicated:
    """Raise `DatabaseUnavailable` at the end if a commit meanwhile was cut short while it waited for a standby.

    A cancelled wait (by a timeout, or by pg_cancel_backend) leaves the commit on this server, perhaps alone, and
    PostgreSQL reports success with a warning; if the server is lost then, so is the commit.

    connection: of the pool of a `Database`.
    """

    def __init__(self, connection: asyncpg.pool.PoolConnectionProxy) -> None:
        self._warnings: list[str] = connection.aborted_waits
        self._seen = len(self._warnings)

    def __enter__(self) -> None:
        """Begin."""

    def __exit__(self, _type: object, error: BaseException | None, _traceback: object) -> None:
        """Raise, unless an error is on its way already."""
        if error is None and len(self._warnings) > self._seen:
            raise DatabaseUnavailable(f"PostgreSQL: {self._warnings[-1]}: the commit may be on no standby yet")


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
