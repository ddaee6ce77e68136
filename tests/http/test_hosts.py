"""Pages whose name is turned to the service's address (DNS rebinding)."""

from collections.abc import Iterator
from contextlib import ExitStack

import httpx
import pytest

from api import health
from api.app import ROUTES
from artifacts.object_store import S3Config
from tests.http.conftest import BODY, rejected, running
from tests.kit import NOBODY, Api, Service

EVIL = "evil.example:8101"


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Stops what a test started."""
    with ExitStack() as stack:
        yield stack


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.path)
def test_no_route_answers_for_a_strange_name(lone: Api, route: object) -> None:
    """Given a rebound page, whose Origin is its Host, then it reads and writes nothing."""
    path = str(route.path).format(job_id=NOBODY, artifact_id=NOBODY, model_id=NOBODY)  # type: ignore[attr-defined]
    headers = {"Host": EVIL, "Origin": f"http://{EVIL}"}
    for method in route.methods:  # type: ignore[attr-defined]
        answer = lone.http.request(method, path, json=BODY if method == "POST" else None, headers=headers)
        assert answer.status_code == 421
        if method != "HEAD":
            assert rejected(answer, 421, "misdirected_request") == {"field": "Host"}
    assert lone.http.options(path, headers=headers).status_code == 421


@pytest.mark.parametrize("path", ["/", "/nothing", "/docs/assets/index.css", "/v1/jobs/"])
def test_nor_does_what_is_no_route(lone: Api, path: str) -> None:
    """A page learns nothing, not even what is there."""
    assert lone.http.get(path, headers={"Host": EVIL}, follow_redirects=False).status_code == 421


@pytest.mark.parametrize("role", ["orchestrator", "projector", "runner"])
def test_no_role_tells_its_health_for_a_strange_name(
    db_url: str, s3_config: S3Config, stack: ExitStack, role: str
) -> None:
    """Given a role's own port, then the same; probes, which use addresses, are served."""
    service: Service = stack.enter_context(running(role, db_url, s3_config))
    for route in health.ROUTES:
        url = f"{service.health_url}{route.path}"
        # While the role still starts, it is not ready; it has answered for its address all the same.
        assert httpx.get(url, trust_env=False).status_code != 421
        assert httpx.get(url, headers={"Host": EVIL}, trust_env=False).status_code == 421


def test_names_that_are_set_are_served(lone_url: str, s3_config: S3Config, stack: ExitStack) -> None:
    """Given DF_ALLOWED_HOSTS, then these, with and without keys; without it, keys keep pages out by themselves."""
    for given, host, status in (
        ({"DF_ALLOWED_HOSTS": "forge.example.org, *.example.net"}, "forge.example.org:8001", 200),
        ({"DF_ALLOWED_HOSTS": "forge.example.org", "DF_REQUIRE_KEYS": "1"}, EVIL, 421),
        ({"DF_REQUIRE_KEYS": "1"}, EVIL, 200),
    ):
        service = stack.enter_context(running("api", lone_url, s3_config, **given))
        answer = httpx.get(f"{service.url}/healthz", headers={"Host": host}, trust_env=False)
        assert answer.status_code == status
