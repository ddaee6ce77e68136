"""Installs the database schema: one command, safe to run twice and by two processes at once."""

from importlib import resources
from pathlib import Path

import asyncpg
import structlog
from pgmq import get_embedded_install_sql, get_embedded_sql_version

from eventstore.database import Database
from eventstore.errors import SchemaMissing

RELEASE = 1
"""The release of the schema that this code speaks."""

# Keeps two installs of one database apart; 'drfi' as an integer.
_LOCK = 1685218921
_log = structlog.get_logger(__name__)


async def install(database: Database, *, partitions: int = 8) -> bool:
    """Install this release's schema where there is none. Answers whether anything was done.

    partitions: of the log, a power of two from 1 to 256, fixed for its life. Raises `SchemaMissing` if the database
    holds a newer release.
    """
    async with database.connection() as connection, connection.transaction():
        await connection.execute("select pg_advisory_xact_lock($1)", _LOCK)
        installed = await _installed(connection)
        if installed == RELEASE:
            return False
        if installed is not None:
            raise SchemaMissing(f"the database holds schema release {installed}, this is release {RELEASE}")
        await _install_pgmq(connection)
        await connection.execute("select set_config('dreamforge.partitions', $1, true)", str(partitions))
        await connection.execute(_schema_sql())
    _log.info("schema installed", release=RELEASE, partitions=partitions)
    return True


async def check(database: Database) -> None:
    """Raise `SchemaMissing` unless the database holds the release that this code speaks."""
    async with database.connection() as connection:
        installed = await _installed(connection)
    if installed != RELEASE:
        found = "no schema" if installed is None else f"schema release {installed}"
        raise SchemaMissing(f"the database holds {found}, this is release {RELEASE}; run `dreamforge schema install`")


async def _installed(connection: asyncpg.Connection) -> int | None:
    if await connection.fetchval("select to_regclass('eventstore.releases')") is None:
        return None
    release: int | None = await connection.fetchval("select max(release) from eventstore.releases")
    return release


async def _install_pgmq(connection: asyncpg.Connection) -> None:
    # The package's own installer fails on its second run, and cannot run beside ours in one transaction.
    if await connection.fetchval("select to_regclass('pgmq.meta')") is not None:
        return
    if await connection.fetchval("select 1 from pg_available_extensions where name = 'pgmq'"):
        await connection.execute("create extension pgmq")
        return
    await connection.execute(get_embedded_install_sql())
    _log.info("pgmq installed from its SQL", version=get_embedded_sql_version())


def _schema_sql() -> str:
    # In a wheel it lies inside the package; in a checkout at the top, where its readers look for it.
    packaged = resources.files("eventstore") / "schema.sql"
    if packaged.is_file():
        return packaged.read_text(encoding="utf-8")
    return (Path(__file__).parent.parent / "schema.sql").read_text(encoding="utf-8")
