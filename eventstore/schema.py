"""Installs the store and an application's part of the database, or migrates them from an earlier release.

    nothing there   pgmq ─▶ store.sql ─▶ the application's SQL
    release n       migrations n+1 …, which change tables and views ─▶ the functions and rights of both files

All of it in one transaction; safe to run twice, and by two processes at once. Processes of the earlier release keep
running: they wait only while the transaction holds its locks.
"""

import re
from collections.abc import Mapping
from importlib import resources

import asyncpg
import msgspec
import structlog

from eventstore.database import Database
from eventstore.errors import SchemaMissing

RELEASE = 6
"""The release of the schema that this code needs."""

# Keeps two installs of one database apart; 'drfi' as an integer.
_INSTALL_LOCK_ID = 1685218921
_INSTALL_HINT = "run `dreamforge schema install`"
_GRANT_RIGHTS_REGEX = re.compile(r"^select \w+\.grant_rights\(\);", re.MULTILINE)
_FUNCTION_REGEX = re.compile(r"^create or replace function .*?\$\$;$", re.MULTILINE | re.DOTALL)
_log = structlog.get_logger(__name__)


class ApplicationSchema(msgspec.Struct, frozen=True, kw_only=True):
    """An application's part of the database, which is created after the store's.

    sql: what creates it; each function by `create or replace function … $$;`, its rights by a function `grant_rights`.
    migrations: by release, what changes the tables and views of the release before, the store's too.
    """

    sql: str = ""
    migrations: Mapping[int, str] = {}


_NO_APPLICATION_SCHEMA = ApplicationSchema()


async def install(
    database: Database, application: ApplicationSchema = _NO_APPLICATION_SCHEMA, *, partitions: int = 8
) -> bool:
    """Install this release's schema, or migrate to it. Answers whether anything was done.

    partitions: of the log, a power of two from 1 to 256, fixed for its life. Raises `SchemaMissing` if the database
    holds a newer release.
    """
    async with database.transaction() as connection:
        await connection.execute("select pg_advisory_xact_lock($1)", _INSTALL_LOCK_ID)
        installed = await _installed_release(connection)
        if installed == RELEASE:
            await connection.execute("select eventstore.confirm_replicated()")
            return False
        if installed is None:
            await _install_pgmq(connection)
            await connection.execute("select set_config('dreamforge.partitions', $1, true)", str(partitions))
            await connection.execute(_store_sql() + application.sql)
        elif installed < RELEASE:
            await _migrate(connection, application, installed)
        else:
            raise SchemaMissing(f"the database holds schema release {installed}, this is release {RELEASE}")
    _log.info("schema installed", release=RELEASE, migrated_from=installed)
    return True


async def check_release(database: Database) -> None:
    """Raise `SchemaMissing` unless the database holds a release on which this code may run."""
    rows = await database.read("select to_regclass('eventstore.releases') is not null as there")
    if not rows[0]["there"]:
        raise SchemaMissing(f"the database holds no schema, this is release {RELEASE}; {_INSTALL_HINT}")
    installed = (await database.read("select max(release) as release from eventstore.releases"))[0]["release"]
    if installed < RELEASE:
        raise SchemaMissing(
            f"the database holds schema release {installed}, this is release {RELEASE}; {_INSTALL_HINT}"
        )
    serves = (await database.read("select max(serves) as serves from eventstore.releases"))[0]["serves"]
    if serves > RELEASE:
        raise SchemaMissing(
            f"the database holds schema release {installed}, which serves release {serves} of the code and later ones; "
            f"this is release {RELEASE}: upgrade dreamforge"
        )


async def ensure_service_login(database: Database, name: str, password: str) -> None:
    """Make a login that has the service's rights and no others, or give the one that is there this password."""
    create = """
        select format('create role %I login in role dreamforge_service', $1::text)
        where not exists (select from pg_roles where rolname = $1)"""
    async with database.transaction() as connection:
        await connection.execute("select pg_advisory_xact_lock($1)", _INSTALL_LOCK_ID)
        for statement in await connection.fetch(create, name):
            await connection.execute(statement[0])
        change = "select format('alter role %I login password %L', $1::text, $2::text)"
        await connection.execute(await connection.fetchval(change, name, password))


async def _installed_release(connection: asyncpg.Connection) -> int | None:
    if await connection.fetchval("select to_regclass('eventstore.releases')") is None:
        return None
    release: int | None = await connection.fetchval("select max(release) from eventstore.releases")
    return release


async def _migrate(connection: asyncpg.Connection, application: ApplicationSchema, installed: int) -> None:
    for release in range(installed + 1, RELEASE + 1):
        await connection.execute(application.migrations[release])
    store = _store_sql()
    for text in (store, application.sql):
        for statement in (*_FUNCTION_REGEX.findall(text), *_GRANT_RIGHTS_REGEX.findall(text)):
            await connection.execute(statement)
    [recorded] = re.findall(r"^insert into eventstore\.releases .*;$", store, re.MULTILINE)
    await connection.execute(recorded)


async def _install_pgmq(connection: asyncpg.Connection) -> None:
    # The package's own installer fails on its second run, and cannot run beside ours in one transaction.
    if await connection.fetchval("select to_regclass('pgmq.meta')") is not None:
        return
    if await connection.fetchval("select 1 from pg_available_extensions where name = 'pgmq'"):
        await connection.execute("create extension pgmq")
        return
    # Here, since it brings psycopg along: a third of a second for every command that installs nothing.
    from pgmq import get_embedded_install_sql, get_embedded_sql_version  # noqa: PLC0415

    await connection.execute(get_embedded_install_sql())
    _log.info("pgmq installed from its SQL", version=get_embedded_sql_version())


def _store_sql() -> str:
    return (resources.files("eventstore") / "store.sql").read_text(encoding="utf-8")
