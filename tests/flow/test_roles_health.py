"""Every role shows its health on a port of its own."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing

import httpx
import pytest

from artifacts.object_store import S3Config
from tests.kit import Metrics, Service, eventually, roles_environ

CHECKS = {
    "orchestrator": {"database", "committer", "writes", "orchestrator", "quarantine"},
    "projector": {"database", "committer", "writes", "readmodel"},
    "runner": {"database", "committer", "writes", "heartbeat", "object_store"},
}


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Stops what a test started."""
    with ExitStack() as stack:
        yield stack


def get(service: Service, path: str) -> httpx.Response:
    """GET from a role's own port."""
    return httpx.get(f"{service.health_url}{path}", trust_env=False)


@pytest.mark.parametrize("role", CHECKS)
async def test_a_role_alone_answers_for_itself(db_url: str, s3_config: S3Config, stack: ExitStack, role: str) -> None:
    """Given one role, then it is alive, ready by its own checks, measured, and has no other routes."""
    service = Service(role, roles_environ(db_url, s3_config))
    stack.callback(service.stop)
    assert get(service, "/healthz").json()["status"] == "ok"

    async def started() -> bool:
        return get(service, "/readyz").status_code == 200

    await eventually(started)
    ready = get(service, "/readyz")
    assert (ready.status_code, ready.json()["status"]) == (200, "ready")
    assert set(ready.json()["checks"]) == CHECKS[role]

    async def claims() -> bool:
        return Metrics(service.health_url).value("df_worker_ready") == (1 if role == "runner" else 0)

    await eventually(claims)
    assert Metrics(service.health_url).value("df_queue_depth", queue="generate") == 0
    missing = get(service, "/v1/")
    assert (missing.status_code, missing.json()["code"]) == (404, "not_found")
    assert service.stop() == 0


def test_two_runners_on_one_machine_share_no_port(db_url: str, s3_config: S3Config, stack: ExitStack) -> None:
    """Given a port that another process has, then each runner takes a free one and says so."""
    with closing(socket.create_server(("127.0.0.1", 0))) as other:
        taken = other.getsockname()[1]
        given = roles_environ(db_url, s3_config, DF_WORKER_METRICS_PORT=str(taken))
        runners = [Service("runner", given) for _ in range(2)]
        for runner in runners:
            stack.callback(runner.stop)
        ports = {httpx.URL(runner.health_url).port for runner in runners}
        assert len(ports | {taken}) == 3
        for runner in runners:
            assert get(runner, "/healthz").status_code == 200
            [warning] = [line for line in runner.lines if "port is taken" in line]
            assert str(taken) in warning
            assert str(httpx.URL(runner.health_url).port) in warning


def test_up_opens_the_runners_port_as_well(db_url: str, s3_config: S3Config, stack: ExitStack) -> None:
    """Given all roles in one process, then the port that old dashboards scrape tells of the same process as the API."""
    service = Service("up", roles_environ(db_url, s3_config))
    stack.callback(service.stop)
    api = httpx.get(f"{service.url}/readyz", trust_env=False).json()
    assert get(service, "/readyz").json() == api
    before = Metrics(service.url).value("df_api_healthz_hits")
    get(service, "/healthz")
    assert Metrics(service.url).value("df_api_healthz_hits") == (before or 0) + 1


def test_an_address_that_is_not_ours_is_said_to_be(db_url: str, s3_config: S3Config, stack: ExitStack) -> None:
    """Then another port would not help, and the role ends with a sentence that names the setting."""
    service = Service("orchestrator", roles_environ(db_url, s3_config, DF_METRICS_HOST="192.0.2.1"))
    stack.callback(service.stop)
    assert service.process.wait(60) == 1
    service.stop()
    assert "DF_METRICS_HOST" in service.output
    assert "Traceback" not in service.output
