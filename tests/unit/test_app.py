"""What the application answers when something below it breaks."""

from typing import Any, cast

import httpx
import pytest
import structlog

from api.admission import AdmissionControl, AdmissionLimits
from api.app import build_api_app
from api.health import HealthSources
from api.services import ApiConfig
from eventstore.errors import DatabaseUnavailable
from eventstore.ids import new_id
from eventstore.metrics import BacklogGauges
from eventstore.write_probe import WriteProbe


class Broken:
    """Services of which each breaks as told."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    config = ApiConfig()
    keys = None
    admission = AdmissionControl(cast("Any", None), AdmissionLimits())

    def __getattr__(self, _name: str) -> Any:
        raise self._error


async def answer(error: Exception, path: str) -> httpx.Response:
    """What a GET is answered while everything below breaks."""
    broken = cast("Any", Broken(error))
    app = build_api_app(broken, HealthSources({}, BacklogGauges(broken), WriteProbe(broken)))
    transport = httpx.ASGITransport(app=cast("Any", app), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        return await client.get(path, headers={"X-Request-Id": "mine"})


async def test_a_bug_is_a_500_that_leaks_nothing_and_carries_the_requests_id() -> None:
    found = await answer(RuntimeError("the password is swordfish"), f"/v1/jobs/{new_id()}")
    assert found.status_code == 500
    assert found.headers["X-Request-Id"] == "mine"
    body = found.json()
    assert (body["code"], body["correlation_id"]) == ("internal", "mine")
    assert "swordfish" not in found.text


async def test_an_absent_database_is_a_503_that_says_when_to_come_back() -> None:
    found = await answer(DatabaseUnavailable("away"), f"/v1/jobs/{new_id()}")
    assert found.status_code == 503
    assert found.json()["code"] == "infra_unavailable"
    assert int(found.headers["Retry-After"]) > 0


@pytest.mark.parametrize("path", ["/healthz", "/metrics", "/v1/"])
async def test_what_needs_nothing_answers_all_the_same(path: str) -> None:
    assert (await answer(DatabaseUnavailable("away"), path)).status_code == 200


async def test_a_bug_is_logged_once_with_the_requests_id() -> None:
    """Given an exception, then the line that tells of it is ours: uvicorn's would not name the request."""
    with structlog.testing.capture_logs() as lines:
        broken = cast("Any", Broken(RuntimeError("broken")))
        app = build_api_app(broken, HealthSources({}, BacklogGauges(broken), WriteProbe(broken)))
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app=cast("Any", app)), base_url="http://test"
        ) as client:
            await client.get(f"/v1/jobs/{new_id()}", headers={"X-Request-Id": "mine"})
    [told] = [line for line in lines if line["log_level"] == "error"]
    assert (told["event"], told["client_request_id"]) == ("request broke", "mine")
