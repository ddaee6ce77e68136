"""One stack for the whole session; a database of its own for each test.

DF_TEST_DB_URL and DF_TEST_S3_ENDPOINT (with DF_TEST_S3_ACCESS_KEY and DF_TEST_S3_SECRET_KEY) use given servers;
DF_TEST_BACKEND=testcontainers starts containers where a Docker daemon answers; else the embedded ones are started.
"""

import asyncio
import contextlib
import functools
import os
import secrets
import shutil
import signal
import ssl
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

import asyncpg
import hypothesis
import msgspec
import pytest
import structlog

from artifacts.object_store import ObjectStore, S3Config
from dreamforge.embedded import EmbeddedPostgres, EmbeddedSeaweed
from dreamforge.schema import install
from eventstore import schema
from eventstore.database import Database
from eventstore.ids import new_id
from tests.kit import SERVICE_LOGIN, Api, Service, Store, roles_environ
from tests.pooler import pooled
from tests.skips import Skips

# A crowded machine is slow, and no test asserts a time; hypothesis does so unless told.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

# Every `httpx.Client` asks for one, and reading all authorities' certificates takes 40 ms; the tests speak plain HTTP.
ssl.create_default_context = functools.cache(ssl.create_default_context)  # type: ignore[assignment]

# Plain tracebacks, as the service's own: rich takes a tenth of a second to render one with its variables.
structlog.configure(
    processors=[
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback),
    ]
)

# A name for each of pytest-xdist's workers, which may share a given server.
TEMPLATE = f"dreamforge_template_{os.environ.get('PYTEST_XDIST_WORKER', 'main')}"
_IN_MEMORY = Path("/dev/shm")
_ROOM = 4 << 30
PASSED_ON = ("DF_CELERY_EAGER", "DF_FAKE_RUNNER")
"""Settings that the session's service takes over: its tests hold for clients of the old ways, too."""

# A shell's background job ignores Ctrl-C, and so would every command that a test starts to interrupt it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config: pytest.Config) -> None:
    """A test may be skipped if tests/skips.py lists it."""
    config.pluginmanager.register(Skips())


class Backends(msgspec.Struct, frozen=True):
    """Where the session's PostgreSQL and S3 are. db_url: of a user that may create databases."""

    db_url: str
    s3: S3Config


@pytest.fixture(scope="session")
def servers_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of the session's servers, in memory where that has room.

    A test's database is a copy of 300 files, which takes a disk's file system 100 ms and more.
    """
    with contextlib.ExitStack() as stack:
        if _IN_MEMORY.is_dir() and shutil.disk_usage(_IN_MEMORY).free >= _ROOM:
            yield Path(stack.enter_context(TemporaryDirectory(prefix="dreamforge-tests-", dir=_IN_MEMORY)))
        else:
            yield tmp_path_factory.mktemp("servers")


@pytest.fixture(scope="session")
def session_backends(servers_home: Path) -> Iterator[Backends]:
    """The session's stack."""
    with contextlib.ExitStack() as stack:
        if os.environ.get("DF_TEST_BACKEND") == "testcontainers":
            found = _containers(stack)
        else:
            found = Backends(_database(stack, servers_home), _store(stack, servers_home))
        stack.enter_context(pooled(found.db_url, SERVICE_LOGIN))
        yield found


def _database(stack: contextlib.ExitStack, home: Path) -> str:
    given = os.environ.get("DF_TEST_DB_URL")
    if given:
        return given
    postgres = EmbeddedPostgres.start(home)
    stack.callback(postgres.stop)
    # Hundreds of databases are copied, and none outlives the session.
    set_fsync(postgres.url, on=False)
    return postgres.url


def set_fsync(url: str, *, on: bool) -> None:
    """Let a server wait until its files are on the disk, or not; from the next connection on."""
    wanted = "on" if on else "off"

    async def change() -> None:
        await execute(url, f"alter system set fsync = {wanted}", "select pg_reload_conf()")
        # The server hears of it by a signal, after this connection has.
        while True:
            connection = await asyncpg.connect(url)
            found = await connection.fetchval("show fsync")
            await connection.close()
            if found == wanted:
                return

    asyncio.run(change())


def _store(stack: contextlib.ExitStack, home: Path) -> S3Config:
    bucket = f"test-{new_id().hex[-12:]}"
    given = os.environ.get("DF_TEST_S3_ENDPOINT")
    if given:
        keys = (os.environ["DF_TEST_S3_ACCESS_KEY"], os.environ["DF_TEST_S3_SECRET_KEY"])
        return S3Config(endpoint=given, access_key=keys[0], secret_key=keys[1], bucket=bucket)
    seaweed = EmbeddedSeaweed.start(home)
    stack.callback(seaweed.stop)
    return S3Config(
        endpoint=seaweed.endpoint, access_key=seaweed.access_key, secret_key=seaweed.secret_key, bucket=bucket
    )


def _containers(stack: contextlib.ExitStack) -> Backends:
    # Imported here, since they want a Docker daemon the moment they are.
    from testcontainers.community.postgres import PostgresContainer  # noqa: PLC0415
    from testcontainers.core.container import DockerContainer  # noqa: PLC0415
    from testcontainers.core.wait_strategies import HttpWaitStrategy  # noqa: PLC0415

    key, secret = "dreamforge", secrets.token_hex(16)
    postgres = stack.enter_context(PostgresContainer("postgres:17", driver=None))
    minio = DockerContainer("minio/minio", command="server /data", ports=[9000])
    minio.with_envs(MINIO_ROOT_USER=key, MINIO_ROOT_PASSWORD=secret)
    minio.waiting_for(HttpWaitStrategy(9000, "/minio/health/ready"))
    stack.enter_context(minio)
    endpoint = f"http://{minio.get_container_host_ip()}:{minio.get_exposed_port(9000)}"
    store = S3Config(endpoint=endpoint, access_key=key, secret_key=secret, bucket="dreamforge-test")
    return Backends(postgres.get_connection_url(), store)


def database_named(url: str, name: str) -> str:
    """The URL of another database on the same server."""
    return urlsplit(url)._replace(path=f"/{name}").geturl()


@pytest.fixture(scope="session")
def backends(session_backends: Backends) -> Backends:
    """The stack that the tests use; those of the store ask for other databases, too."""
    return session_backends


async def execute(url: str, *statements: str) -> None:
    """Run statements on a connection of their own."""
    connection = await asyncpg.connect(url)
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


@functools.cache
def _template(url: str) -> str:
    """A database with the schema installed, from which others are copied in a moment; one for each server."""

    async def make() -> None:
        await execute(
            url,
            f"drop database if exists {TEMPLATE}",
            f"create database {TEMPLATE} template template0 encoding 'UTF8' lc_collate 'C' lc_ctype 'C'",
        )
        database = Database(database_named(url, TEMPLATE))
        await install(database)
        await schema.ensure_service_login(database, *SERVICE_LOGIN)
        await database.close()

    asyncio.run(make())
    return TEMPLATE


@contextlib.contextmanager
def fresh_database(backends: Backends, *, installed: bool = True) -> Iterator[str]:
    """A database of one's own, with our schema unless told otherwise."""
    name = f"df_{new_id().hex[-16:]}"
    template = _template(backends.db_url) if installed else "template0"
    asyncio.run(execute(backends.db_url, f"create database {name} template {template} strategy file_copy"))
    if installed:
        # A copy is another log than its template and the copies beside it.
        url = database_named(backends.db_url, name)
        asyncio.run(execute(url, "update eventstore.log set log_id = gen_random_uuid()"))
    try:
        yield database_named(backends.db_url, name)
    finally:
        asyncio.run(execute(backends.db_url, f"drop database {name} with (force)"))


@pytest.fixture
def durable(backends: Backends) -> Iterator[None]:
    """A server that keeps what it answered for, as users have it, for the tests that look at how it is set."""
    if "DF_TEST_DB_URL" in os.environ or os.environ.get("DF_TEST_BACKEND") == "testcontainers":
        yield
        return
    set_fsync(backends.db_url, on=True)
    yield
    set_fsync(backends.db_url, on=False)


@pytest.fixture
def empty_url(backends: Backends) -> Iterator[str]:
    """A database without our schema."""
    with fresh_database(backends, installed=False) as url:
        yield url


@pytest.fixture
def db_url(backends: Backends) -> Iterator[str]:
    """A database with the schema, for one test."""
    with fresh_database(backends) as url:
        yield url


@pytest.fixture
async def store(db_url: str) -> AsyncIterator[Store]:
    """An event store on a database of its own."""
    store = Store(db_url)
    yield store
    await store.close()


@pytest.fixture(scope="session")
def s3_config(backends: Backends) -> S3Config:
    """The session's object store, its bucket made."""

    async def make() -> None:
        store = ObjectStore(backends.s3)
        await store.ensure_bucket()
        await store.close()

    asyncio.run(make())
    return backends.s3


@pytest.fixture(scope="session")
def service(backends: Backends, s3_config: S3Config) -> Iterator[Service]:
    """`dreamforge up` on a database of its own, for the tests that only speak HTTP to it."""
    given = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    with fresh_database(backends) as url:
        service = Service("up", roles_environ(url, s3_config, **given))
        try:
            assert service.url
            yield service
        finally:
            service.stop()


@pytest.fixture
def api(service: Service) -> Iterator[Api]:
    """A REST consumer of the session's service."""
    api = Api(service.url)
    yield api
    api.close()
