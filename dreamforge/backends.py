"""The database and the object store of a process: those that the settings name, or embedded ones."""

import asyncio
import getpass
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote, urlsplit

from msgspec.structs import replace

from dreamforge.embedded import EmbeddedPostgres, EmbeddedSeaweed, Home
from dreamforge.embedded import home as notes
from dreamforge.settings import Settings, SettingsError
from eventstore import schema
from eventstore.database import Database

T = TypeVar("T")

_SERVICE = "dreamforge_app"
"""The embedded database's login of the service, which does not own what it works on."""


def configured(settings: Settings) -> Settings:
    """The settings of a role that runs alone: it needs a database and an object store of its own to share."""
    if settings.db_url is None:
        raise SettingsError("DF_DB_URL is not set; name the database, or run `dreamforge up`, which brings one.")
    return settings


def with_store(settings: Settings) -> Settings:
    """The settings of a role that needs the object store too."""
    for name, value in (
        ("DF_S3_ENDPOINT", settings.s3_endpoint),
        ("DF_S3_ACCESS_KEY", settings.s3_access_key),
        ("DF_S3_SECRET_KEY", settings.s3_secret_key),
    ):
        if value is None:
            raise SettingsError(f"{name} is not set; name the object store, or run `dreamforge up`, which brings one.")
    return configured(settings)


def ask_database(settings: Settings, role: str, question: Callable[[Database, str], Awaitable[T]]) -> T:
    """Do something with the database of a command: the one that the settings name, or else the home's.

    question: is given the database, and who asks, for the meta of events.
    """

    async def ask(found: Settings) -> T:
        pooled = found.db_pooler == "transaction"
        database = Database(found.db_url or "", pooled=pooled, bounded=False, role=f"dreamforge-{role}")
        try:
            # A home may be new: whoever comes first installs the schema.
            await (schema.install(database) if settings.db_url is None else schema.check(database))
            return await question(database, f"{getpass.getuser()}@{socket.gethostname()}")
        finally:
            await database.close()

    with given_or_home(settings) as found:
        return asyncio.run(ask(found))


@contextmanager
def given_or_home(settings: Settings) -> Iterator[Settings]:
    """The settings of a command that needs the database alone: the one that they name, or else the home's.

    The home's is shared with whoever runs it; where nobody does, it is started for as long as this lasts.
    """
    if settings.db_url is not None:
        yield settings
        return
    url = EmbeddedPostgres.running_url(settings.home)
    if url is not None:
        yield replace(settings, db_url=url, db_pooler=None)
        return
    home = Home(settings.home)
    home.lock()
    try:
        postgres = EmbeddedPostgres.start(home.path)
        try:
            yield replace(settings, db_url=postgres.url, db_pooler=None)
        finally:
            postgres.stop()
    finally:
        home.release()


async def service_login(settings: Settings, owner: Database) -> Settings:
    """The settings of an embedded database with a login that can't change the log; made if it is not there yet."""
    password = notes.secret(settings.home / "postgres" / "service_password")
    await schema.ensure_service_login(owner, _SERVICE, password)
    url = login(settings.db_url or "", _SERVICE, password)
    return replace(settings, db_url=url, db_listen_url=url)


def login(url: str, user: str, password: str) -> str:
    """A database's URL with another user's login."""
    parts = urlsplit(url)
    place = parts.netloc.rpartition("@")[2]
    return parts._replace(netloc=f"{quote(user, safe='')}:{quote(password, safe='')}@{place}").geturl()


async def embedded(settings: Settings, stack: AsyncExitStack) -> Settings:
    """The settings with what they leave open started from the home; the stack stops it all, the database last."""
    if settings.db_url is not None and settings.s3_endpoint is not None:
        return with_store(settings)
    home = Home(settings.home)
    home.lock()
    stack.callback(home.release)
    postgres, seaweed = await _started(home.path, settings)
    if postgres is not None:
        stack.push_async_callback(asyncio.to_thread, postgres.stop)
        settings = replace(settings, db_url=postgres.url, db_listen_url=postgres.url, db_pooler=None)
    if seaweed is not None:
        stack.push_async_callback(asyncio.to_thread, seaweed.stop)
        settings = replace(
            settings,
            s3_endpoint=seaweed.endpoint,
            s3_access_key=seaweed.access_key,
            s3_secret_key=seaweed.secret_key,
            s3_public_endpoint=None,
        )
    return with_store(settings)


async def _started(home: Path, settings: Settings) -> tuple[EmbeddedPostgres | None, EmbeddedSeaweed | None]:
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
