"""The database and the object store of a process: those that the settings name, or embedded ones."""

import asyncio
import getpass
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote, urlsplit

from msgspec.structs import replace

from artifacts.object_store import ObjectStore, S3Config
from dreamforge.embedded import EmbeddedPostgres, EmbeddedSeaweed, Home
from dreamforge.embedded import home as home_files
from dreamforge.schema import install
from dreamforge.settings import NotConfigured, Settings
from eventstore import schema
from eventstore.database import Database

T = TypeVar("T")

_SERVICE_LOGIN_NAME = "dreamforge_app"
"""The embedded database's login of the service, which does not own what it works on."""


def require_db_url(settings: Settings) -> Settings:
    """The settings of a role that runs alone: it needs a database and an object store of its own to share."""
    if settings.db_url is None:
        raise NotConfigured("DF_DB_URL is not set; name the database, or run `dreamforge up`, which brings one.")
    return settings


def require_db_and_s3(settings: Settings) -> Settings:
    """The settings of a role that needs the object store too."""
    for name, value in (
        ("DF_S3_ENDPOINT", settings.s3_endpoint),
        ("DF_S3_ACCESS_KEY", settings.s3_access_key),
        ("DF_S3_SECRET_KEY", settings.s3_secret_key),
    ):
        if value is None:
            raise NotConfigured(f"{name} is not set; name the object store, or run `dreamforge up`, which brings one.")
    return require_db_url(settings)


def run_with_database(settings: Settings, role: str, work: Callable[[Database], Awaitable[T]]) -> T:
    """Do something with the database of a command: the one that the settings name, or else the home's."""

    async def ask(found: Settings) -> T:
        async with _open_database(found, role, install_schema=settings.db_url is None) as database:
            return await work(database)

    with resolve_backends(settings) as found:
        return asyncio.run(ask(found))


def run_with_backends(settings: Settings, role: str, work: Callable[[Database, ObjectStore], Awaitable[T]]) -> T:
    """The same with the object store, too."""

    async def ask(found: Settings) -> T:
        store = create_object_store(found)
        try:
            async with _open_database(found, role, install_schema=settings.db_url is None) as database:
                return await work(database, store)
        finally:
            await store.close()

    with resolve_backends(settings, with_store=True) as found:
        return asyncio.run(ask(found))


def user_at_host() -> str:
    """Who runs this command, for the meta of events."""
    return f"{getpass.getuser()}@{socket.gethostname()}"


@asynccontextmanager
async def _open_database(settings: Settings, role: str, *, install_schema: bool) -> AsyncIterator[Database]:
    pooled = settings.db_pooler == "transaction"
    database = Database(settings.db_url or "", pooled=pooled, time_limited=False, application_name=f"dreamforge-{role}")
    try:
        # A home may be an earlier release's, or its first start was cut off: the first process installs the schema.
        await (install(database) if install_schema else schema.check_release(database))
        yield database
    finally:
        await database.close()


def create_object_store(settings: Settings) -> ObjectStore:
    """The object store that the settings name."""
    return ObjectStore(
        S3Config(
            endpoint=settings.s3_endpoint,
            access_key=settings.s3_access_key or "",
            secret_key=settings.s3_secret_key or "",
            bucket=settings.s3_bucket,
            region=settings.s3_region,
            public_endpoint=settings.s3_public_endpoint,
        )
    )


@contextmanager
def resolve_backends(settings: Settings, *, with_store: bool = False) -> Iterator[Settings]:
    """The settings of a command that needs the database: the one that they name, or else the home's.

    The home's is shared with whoever runs it; where nobody does, it is started for as long as this lasts. A home is
    never made: a command in the wrong folder would answer for an empty one. with_store: the same for the object store.
    """
    running = _settings_of_running_services(settings, with_store=with_store)
    if running is not None:
        yield running
        return
    home = Home(settings.home)
    with ExitStack() as stack:
        stack.callback(home.release)
        # Somebody who has just begun to make one is to be named.
        if home.was_locked_before():
            home.lock()
        _expect_configured_or_embedded(settings, with_store=with_store)
        home.lock()
        if settings.db_url is None:
            postgres = EmbeddedPostgres.start(home.path)
            stack.callback(postgres.stop)
            settings = replace(settings, db_url=postgres.url, db_pooler=None)
        if with_store and settings.s3_endpoint is None:
            seaweed = EmbeddedSeaweed.start(home.path)
            stack.callback(seaweed.stop)
            settings = _settings_with_seaweed(settings, seaweed)
        yield settings


def expect_database(settings: Settings) -> None:
    """Raise `NotConfigured` early, before a command does what takes long, if there is no database for it."""
    if not Home(settings.home).was_locked_before():
        _expect_configured_or_embedded(settings, with_store=False)


def _expect_configured_or_embedded(settings: Settings, *, with_store: bool) -> None:
    home = settings.home.expanduser().resolve()
    way_out = f"or DF_HOME, to the home of `dreamforge up`, which makes one; {home} is none."
    if settings.db_url is None and not EmbeddedPostgres.exists(home):
        raise NotConfigured(f"There is no database. Set DF_DB_URL, {way_out}")
    if with_store and settings.s3_endpoint is None and not EmbeddedSeaweed.exists(home):
        keys = "DF_S3_ENDPOINT, DF_S3_ACCESS_KEY and DF_S3_SECRET_KEY"
        raise NotConfigured(f"There is no object store. Set {keys}, {way_out}")


def _settings_of_running_services(settings: Settings, *, with_store: bool) -> Settings | None:
    """The settings, with what the home runs already; None where it would have to be started."""
    if settings.db_url is None:
        url = EmbeddedPostgres.running_url(settings.home)
        if url is None:
            return None
        settings = replace(settings, db_url=url, db_pooler=None)
    if with_store and settings.s3_endpoint is None:
        seaweed = EmbeddedSeaweed.find_running(settings.home)
        if seaweed is None:
            return None
        settings = _settings_with_seaweed(settings, seaweed)
    return settings


def _settings_with_seaweed(settings: Settings, seaweed: EmbeddedSeaweed) -> Settings:
    return replace(
        settings,
        s3_endpoint=seaweed.endpoint,
        s3_access_key=seaweed.access_key,
        s3_secret_key=seaweed.secret_key,
        s3_public_endpoint=None,
    )


async def with_service_login(settings: Settings, owner_database: Database) -> Settings:
    """The settings of an embedded database with a login that can't change the log; made if it is not there yet."""
    password = home_files.read_or_create_secret(settings.home / "postgres" / "service_password")
    await schema.ensure_service_login(owner_database, _SERVICE_LOGIN_NAME, password)
    url = replace_url_login(settings.db_url or "", _SERVICE_LOGIN_NAME, password)
    return replace(settings, db_url=url, db_listen_url=url)


def replace_url_login(url: str, user: str, password: str) -> str:
    """A database's URL with another user's login."""
    parts = urlsplit(url)
    address = parts.netloc.rpartition("@")[2]
    return parts._replace(netloc=f"{quote(user, safe='')}:{quote(password, safe='')}@{address}").geturl()


async def start_embedded_services(settings: Settings, stack: AsyncExitStack) -> Settings:
    """The settings with what they leave open started from the home; the stack stops it all, the database last."""
    if settings.db_url is not None and settings.s3_endpoint is not None:
        return require_db_and_s3(settings)
    home = Home(settings.home)
    home.lock()
    stack.callback(home.release)
    postgres, seaweed = await _start_services(home.path, settings)
    if postgres is not None:
        stack.push_async_callback(asyncio.to_thread, postgres.stop)
        settings = replace(settings, db_url=postgres.url, db_listen_url=postgres.url, db_pooler=None)
    if seaweed is not None:
        stack.push_async_callback(asyncio.to_thread, seaweed.stop)
        settings = _settings_with_seaweed(settings, seaweed)
    return require_db_and_s3(settings)


async def _start_services(home: Path, settings: Settings) -> tuple[EmbeddedPostgres | None, EmbeddedSeaweed | None]:
    """Start both at once; if one fails, the other is stopped again."""

    async def postgres() -> EmbeddedPostgres | None:
        return await asyncio.to_thread(EmbeddedPostgres.start, home) if settings.db_url is None else None

    async def seaweed() -> EmbeddedSeaweed | None:
        return await asyncio.to_thread(EmbeddedSeaweed.start, home) if settings.s3_endpoint is None else None

    first, second = await asyncio.gather(postgres(), seaweed(), return_exceptions=True)
    for one, other in ((first, second), (second, first)):
        if isinstance(one, BaseException):
            if other is not None and not isinstance(other, BaseException):
                await asyncio.to_thread(other.stop)
            raise one
    return first, second  # type: ignore[return-value]  # neither is an exception by now
