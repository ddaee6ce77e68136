"""GET /metrics: what a process tells Prometheus."""

from collections.abc import Awaitable, Callable, Iterator

import pytest

from artifacts.object_store import S3Config
from eventstore.ids import new_id
from tests.conftest import Backends, fresh_database
from tests.kit import Api, Metrics, Service, eventually, roles_environ

STEP_COUNTERS = [
    f"jobs_{step}_{outcome}_total" for step in ("generate", "upscale") for outcome in ("started", "succeeded", "failed")
]


@pytest.fixture
def fresh(backends: Backends, s3_config: S3Config) -> Iterator[Api]:
    """A service that has seen no job, and whose runner fails at the third item of every upscale."""
    with fresh_database(backends) as url:
        service = Service("up", roles_environ(url, s3_config, DF_FAKE_FAIL="upscale:2"))
        api = Api(service.url)
        yield api
        api.close()
        service.stop()


def when(base: str, true: Callable[[Metrics], bool]) -> Awaitable[bool]:
    """Wait until the metrics are as told."""

    async def probe() -> bool:
        return true(Metrics(base))

    return eventually(probe)


def steps(base: str) -> dict[str, float | None]:
    """The counters of steps."""
    metrics = Metrics(base)
    return {name: metrics.value(name) for name in STEP_COUNTERS}


async def test_steps_are_counted_from_zero(fresh: Api) -> None:
    """Given no job, one that succeeds and one that fails, then each step is counted as what became of it."""
    assert steps(fresh.base) == dict.fromkeys(STEP_COUNTERS, 0)
    await when(fresh.base, lambda metrics: metrics.value("df_worker_ready") == 1)
    assert fresh.finished(fresh.create(count=2))["status"] == "succeeded"
    assert fresh.finished(fresh.create(count=3))["status"] == "failed"
    assert steps(fresh.base) == {
        "jobs_generate_started_total": 2,
        "jobs_generate_succeeded_total": 2,
        "jobs_generate_failed_total": 0,
        "jobs_upscale_started_total": 2,
        "jobs_upscale_succeeded_total": 1,
        "jobs_upscale_failed_total": 1,
    }


def test_requests_are_counted_by_the_routes_template(api: Api) -> None:
    """No id, invented path or invented method becomes a label: each would be a series for ever."""
    labels = {"method": "GET", "route": "/v1/jobs/{job_id}"}
    job_id = api.create(scale=None)
    api.finished(job_id)
    before = Metrics(api.base)
    api.job(job_id)
    api.http.get(f"/v1/jobs/{new_id()}")
    api.http.get("/nowhere/at/all")
    api.http.request("PROPFIND", "/v1/jobs")
    after = Metrics(api.base)

    def grown(name: str, **labels: str) -> float:
        return (after.value(name, **labels) or 0) - (before.value(name, **labels) or 0)

    assert grown("df_http_requests_total", **labels, status="200") == 1
    assert grown("df_http_requests_total", **labels, status="404") == 1
    assert grown("df_http_request_seconds_count", **labels) == 2
    assert grown("df_http_requests_total", method="GET", route="unmatched", status="404") == 1
    assert grown("df_http_requests_total", method="other", route="/v1/jobs", status="405") == 1
    assert not any(job_id in route for route in after.labelled("df_http_requests_total", "route"))


async def test_an_open_stream_is_a_client_and_no_slow_request(lone: Api) -> None:
    """Given a client on a live stream, then it is counted while it reads, and its time is in no histogram."""
    job_id = lone.create()
    stream = {"method": "GET", "route": "/v1/jobs/{job_id}/progress/stream"}
    before = Metrics(lone.base)
    for kind, path in (("job", f"/v1/jobs/{job_id}/progress/stream"), ("log", "/v1/events/stream")):
        with lone.http.stream("GET", path) as answer:
            chunks = answer.iter_bytes()
            next(chunks)
            await when(lone.base, lambda metrics, kind=kind: metrics.value("df_sse_clients", stream=kind) == 1)  # type: ignore[misc]
        await when(lone.base, lambda metrics, kind=kind: metrics.value("df_sse_clients", stream=kind) == 0)  # type: ignore[misc]
    after = Metrics(lone.base)
    requests = [metrics.value("df_http_requests_total", **stream, status="200") or 0 for metrics in (before, after)]
    assert requests[1] == requests[0] + 1
    timed = [metrics.value("df_http_request_seconds_count", **stream) for metrics in (before, after)]
    assert timed[1] == timed[0]


async def test_queues_and_lags_are_told_as_they_are(api: Api) -> None:
    """Given jobs that have ended, then nothing is queued and every subscription has passed every event."""
    api.finished(api.create())

    def at_rest(metrics: Metrics) -> bool:
        return all(
            metrics.value(name, **{label: value}) == 0
            for name, label, values in (
                ("df_queue_depth", "queue", ("generate", "upscale")),
                ("df_queue_oldest_age_seconds", "queue", ("generate", "upscale")),
                ("df_projection_lag_events", "subscription", ("orchestrator", "readmodel")),
                ("df_projection_lag_seconds", "subscription", ("orchestrator", "readmodel")),
                ("df_subscription_failed", "subscription", ("orchestrator", "readmodel")),
            )
            for value in values
        )

    await when(api.base, at_rest)
    assert (Metrics(api.base).value("df_append_seconds_count") or 0) > 0


def test_health_checks_are_counted_by_their_old_name(api: Api) -> None:
    """df_api_healthz_hits, without the _total that the library would add to a counter."""
    before = Metrics(api.base).value("df_api_healthz_hits")
    api.get("/healthz")
    api.http.head("/healthz")
    counted = Metrics(api.base).value("df_healthz_requests_total")
    after = Metrics(api.base).value("df_api_healthz_hits")
    assert counted == after
    assert (before, after) == (before, (before or 0) + 2)


@pytest.mark.parametrize(
    ("accept", "answered"),
    [
        (None, "text/plain; version=0.0.4; charset=utf-8"),
        ("*/*", "text/plain; version=0.0.4; charset=utf-8"),
        ("application/openmetrics-text;version=1.0.0,text/plain;q=0.5", "application/openmetrics-text; version=1.0.0"),
        ("application/openmetrics-text;version=one", "text/plain; version=0.0.4; charset=utf-8"),
    ],
)
def test_the_scraper_chooses_the_form(api: Api, accept: str | None, answered: str) -> None:
    """Text, or OpenMetrics if asked for; a version that is none is no error."""
    answer = api.http.get("/metrics", headers={} if accept is None else {"Accept": accept})
    assert answer.status_code == 200
    assert answer.headers["Content-Type"].startswith(answered)
    assert "jobs_upscale_started_total" in answer.text
    assert "_created" not in answer.text


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics"])
def test_head_answers_like_get_without_a_body(api: Api, path: str) -> None:
    """Load balancers ask this way."""
    answer = api.http.head(path)
    assert (answer.status_code, answer.content) == (200, b"")
