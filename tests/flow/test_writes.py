"""A database whose commits fail while its reads go on: roles that write are not ready, and the API is, for reads."""

from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack

import httpx
import pytest

from artifacts.object_store import S3Config
from dreamforge.embedded import EmbeddedPostgres
from dreamforge.schema import install
from eventstore import schema
from eventstore.database import Database
from tests.kit import SERVICE_LOGIN, Metrics, Service, connect, eventually, roles_environ

ROLES = ("api", "orchestrator", "projector", "runner", "up")
CONDITIONS = {
    "a server that is read-only": "default_transaction_read_only = on",
    "a synchronous standby that is away": "synchronous_standby_names = 'nobody'",
    "no room for a file": "temp_file_limit = 0",
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of one's own, since what a test sets is the whole server's."""
    server = EmbeddedPostgres.start(tmp_path_factory.mktemp("server"))
    yield server.url
    server.stop()


@pytest.fixture(scope="module")
async def services(
    server: str, s3_config: S3Config, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[dict[str, Service]]:
    """A process of each kind on it."""
    database = Database(server)
    await install(database)
    await schema.ensure_service_login(database, *SERVICE_LOGIN)
    await database.close()
    environ = roles_environ(server, s3_config, DF_HOME=str(tmp_path_factory.mktemp("home")))
    with ExitStack() as stack:
        started = {role: Service(role, environ) for role in ROLES}
        for service in started.values():
            stack.callback(service.stop)
        yield started


async def set_up(server: str, setting: str) -> None:
    """Change a setting of the server."""
    connection = await connect(server)
    await connection.execute(f"alter system {setting}")
    await connection.execute("select pg_reload_conf()")
    await connection.close()


def get(url: str, **query: str) -> httpx.Response:
    """GET."""
    return httpx.get(url, params=query, timeout=30, trust_env=False)


def ready(url: str, **query: str) -> tuple[int, str]:
    """The status of /readyz, and what it says of writes."""
    answer = get(f"{url}/readyz", **query)
    return answer.status_code, answer.json()["checks"]["writes"]


async def all_well(services: dict[str, Service]) -> bool:
    """Is every process ready?"""
    urls = [service.health_url for role, service in services.items() if role != "api"]
    urls += [services["api"].url, services["up"].url]
    return all(ready(url, need="writes") == (200, "ok") for url in urls)


@pytest.fixture
async def failing(server: str, services: dict[str, Service], request: pytest.FixtureRequest) -> AsyncIterator[None]:
    """Commits fail for as long as the test, and none has failed before."""

    async def well() -> bool:
        return await all_well(services)

    await eventually(well, within=60)
    await set_up(server, f"set {request.param}")
    yield
    await set_up(server, "reset all")


@pytest.mark.parametrize("failing", CONDITIONS.values(), ids=CONDITIONS, indirect=True)
async def test_failing_writes_show(services: dict[str, Service], failing: None) -> None:
    """Given commits that fail, then who writes is not ready, and the API is for reads, and says so."""
    del failing

    async def told() -> bool:
        return all(ready(services[role].url, need="writes")[0] == 503 for role in ("api", "up"))

    await eventually(told, within=60)
    for role in ("orchestrator", "projector", "runner", "up"):
        status, writes = ready(services[role].health_url)
        assert (status, writes == "ok") == (503, False), role
    for role in ("api", "up"):
        url = services[role].url
        status, writes = ready(url)
        assert (status, writes == "ok") == (200, False), role
        assert get(f"{url}/v1/jobs").status_code == 200
        assert Metrics(url).value("df_database_writable") == 0


async def test_writes_that_succeed_show(services: dict[str, Service]) -> None:
    """Given a server that is well again, then all is, and the probes have left nothing in the log."""

    async def well() -> bool:
        return await all_well(services)

    await eventually(well, within=60)
    for role, service in services.items():
        assert Metrics(service.url if role == "api" else service.health_url).value("df_database_writable") == 1
    page = get(f"{services['api'].url}/v1/events").json()
    assert page["events"] == []


async def test_need_knows_one_word(services: dict[str, Service]) -> None:
    """Given another, then 422: it would else be ready without what was asked for."""
    answer = get(f"{services['api'].url}/readyz", need="reads")
    assert (answer.status_code, answer.json()["details"]["field"]) == (422, "need")
