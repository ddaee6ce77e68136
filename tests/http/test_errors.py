"""The table of errors: each row over HTTP, its status, code, details and headers. (401, 403 and 429 need keys.)"""

import asyncio
from collections.abc import Iterator
from typing import Any, cast
from urllib.parse import urlsplit

import httpx
import pytest

from api.admission import AdmissionControl, AdmissionLimits
from api.app import build_api_app
from api.health import HealthSources
from api.services import ApiConfig, OpenStreamLimiter
from artifacts.object_store import S3Config
from eventstore.metrics import BacklogGauges
from eventstore.write_probe import WriteProbe
from orchestrator.events import StepError
from tests.conftest import Backends, execute, fresh_database
from tests.http.conftest import BODY, Scribe, consumer, invalid, rejected, running, succeeded, until
from tests.kit import NOBODY, Api, History

NO_JOB = f"/v1/jobs/{NOBODY}"


@pytest.mark.parametrize(
    "path",
    [
        "/nowhere",
        "/v1/jobs/no-uuid",
        "/v1/jobs/%00",
        NO_JOB,
        *(f"{NO_JOB}/{part}" for part in ("artifacts", "progress", "progress/stream", "events", "logs")),
        f"{NO_JOB}/artifacts/{NOBODY}/content",
        f"/v1/models/{NOBODY}",
    ],
)
def test_what_is_not_there_is_a_404(lone: Api, path: str) -> None:
    """An unknown route or id, and an id that is no UUID."""
    rejected(lone.http.get(path), 404, "not_found")


@pytest.mark.parametrize("action", ["cancel", "retry"])
@pytest.mark.parametrize("job_id", [NOBODY, "x"])
def test_a_command_to_no_job_is_a_404(api: Api, action: str, job_id: object) -> None:
    rejected(api.http.post(f"/v1/jobs/{job_id}/{action}"), 404, "not_found")


async def test_an_artifact_of_another_job_is_a_404(lone: Api, scribe: Scribe) -> None:
    """So is an artifact's id that is no UUID."""
    job_id, other = [await scribe.write(succeeded()) for _ in range(2)]
    artifact_id = lone.artifacts(other)[0]["id"]
    for one in (artifact_id, "x"):
        rejected(lone.http.get(f"/v1/jobs/{job_id}/artifacts/{one}/content"), 404, "not_found")


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("DELETE", NO_JOB, {"GET", "HEAD"}),
        ("PUT", "/v1/jobs", {"GET", "HEAD", "POST"}),
        ("GET", f"{NO_JOB}/cancel", {"POST"}),
        ("POST", "/v1/events", {"GET", "HEAD"}),
        ("POST", "/v1/events/stream", {"GET"}),
        ("POST", "/healthz", {"GET", "HEAD"}),
    ],
)
def test_a_method_that_is_not_possible_is_a_405_with_allow(api: Api, method: str, path: str, allow: set[str]) -> None:
    answer = api.http.request(method, path)
    rejected(answer, 405, "method_not_allowed")
    assert set(answer.headers["Allow"].split(", ")) == allow


async def test_a_command_that_the_state_forbids_is_a_409(lone: Api, scribe: Scribe) -> None:
    """A job that has ended can't be cancelled, one that has not failed can't be retried."""
    job_id = await scribe.write(succeeded())
    for action in ("cancel", "retry"):
        details = rejected(lone.http.post(f"/v1/jobs/{job_id}/{action}"), 409, "conflict")
        assert details["job_id"] == job_id
    rejected(lone.http.post(f"/v1/jobs/{lone.create()}/retry"), 409, "conflict")


def chunks(size: int) -> Iterator[bytes]:
    """A body that doesn't say beforehand how long it is."""
    for _ in range(size // 1024):
        yield b" " * 1024
    yield b" " * (size % 1024)


@pytest.mark.parametrize("path", ["/v1/jobs", f"{NO_JOB}/cancel"])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_is_too_large_is_a_413(lone: Api, tuned: Api, path: str, chunked: bool) -> None:  # noqa: FBT001
    """1 MiB, or DF_MAX_BODY_BYTES; also when chunked. A body of just that size is read."""
    headers = {"Content-Type": "application/json"}
    for api, most in ((lone, 2**20), (tuned, 2048)):
        for size in (most, most + 1):
            content = chunks(size) if chunked else b" " * size
            answer = httpx.post(f"{api.base}{path}", content=content, headers=headers, trust_env=False)
            if size > most:
                assert rejected(answer, 413, "payload_too_large") == {"field": "body", "max_bytes": most}
            else:
                assert answer.status_code in {404, 422}


@pytest.mark.parametrize("declared", ["application/x-www-form-urlencoded", "text/plain", "json", "text/x+json"])
def test_a_body_declared_to_be_something_else_is_a_415(api: Api, declared: str) -> None:
    answer = api.http.post("/v1/jobs", content=b"{}", headers={"Content-Type": declared})
    assert rejected(answer, 415, "unsupported_media_type")["field"] == "Content-Type"


@pytest.mark.parametrize(
    ("content", "field"),
    [
        (b"", "body"),
        (b"{", "body"),
        (b"[]", "body"),
        (b"null", "body"),
        (b'"\xff"', "body"),
        (b"[" * 100_000, "body"),
        (b'{"type":"generate","prompt":NaN}', "body"),
        (b'{"type":"generate","prompt":"\\ud800"}', "body"),
        (b'{"type":"generate","prompt":"\\u0000"}', "prompt"),
        (b'{"type":"generate","prompt":"x","metadata":{"a":"\\u0000"}}', "metadata.a"),
    ],
)
def test_a_body_that_is_no_request_is_a_422(api: Api, content: bytes, field: str) -> None:
    """Malformed JSON, U+0000 and lone surrogates included; never a 500."""
    invalid(api.http.post("/v1/jobs", content=content, headers={"Content-Type": "application/json"}), field)


@pytest.mark.parametrize("content", [b"[]", b'{"a":1}', b"{", b"x"])
def test_a_command_takes_no_body_but_an_empty_one(lone: Api, content: bytes) -> None:
    """Cancel and retry need none; nothing, {} and null are as good."""
    path = f"/v1/jobs/{lone.create()}/cancel"
    invalid(lone.http.post(path, content=content), "body")
    for empty in (b"", b"{}", b" { } ", b"null"):
        assert lone.http.post(path, content=empty).status_code == 202


@pytest.mark.parametrize(
    ("path", "field", "values"),
    [
        ("/v1/jobs", "status", ["", "done", "\0"]),
        ("/v1/jobs", "limit", ["", "x", "1.5", "٣"]),
        ("/v1/jobs", "cursor", ["", "x", "AAAA", "\0"]),
        ("/v1/events", "limit", ["0", "1001", "-1", "x"]),
        ("/v1/events", "codes", ["job.exploded"]),
        ("/v1/events", "category", ["jobs"]),
        ("/v1/events/stream", "from", ["end"]),
        ("/v1/jobs/{job}", "as_of_version", ["-1", "x", "2", "99999999999999999999999"]),
        ("/v1/jobs/{job}/artifacts", "step", ["", "sharpen"]),
        ("/v1/jobs/{job}/events", "limit", ["0", "1001", "x"]),
        ("/v1/jobs/{job}/events", "after_version", ["-1", "x"]),
        ("/v1/jobs/{job}/logs", "tail", ["0", "2001", "-1", "x"]),
    ],
)
def test_a_bad_parameter_is_a_422_that_names_it(lone: Api, path: str, field: str, values: list[str]) -> None:
    path = path.format(job=lone.create()) if "{job}" in path else path
    for value in values:
        invalid(lone.http.get(path, params={field: value}), field)


async def test_the_jobs_own_error_is_told_by_code_and_plain_text(lone: Api, scribe: Scribe) -> None:
    history = History(scale=None).started("generate")
    error = StepError(
        step_id=history.step_id("generate"),
        step_name="generate",
        attempt=1,
        item_index=0,
        error_code="oom",
        error_message="Out of memory.",
    )
    job = lone.job(await scribe.write(history.add(error).finished("generate", "failed")))
    assert (job["error_code"], job["error_message"]) == ("oom", "Out of memory.")


class Broken:
    """Services of which each breaks."""

    config = ApiConfig()
    open_streams = OpenStreamLimiter()
    keys = None
    admission = AdmissionControl(cast("Any", None), AdmissionLimits())

    def __getattr__(self, _name: str) -> Any:
        raise RuntimeError("the password is swordfish")


async def test_a_bug_is_a_500_that_leaks_nothing() -> None:
    """And carries its request's id; no black box can be made to have one."""
    broken = cast("Any", Broken())
    transport = httpx.ASGITransport(
        app=cast("Any", build_api_app(broken, HealthSources({}, BacklogGauges(broken), WriteProbe(broken)))),
        raise_app_exceptions=False,
    )
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        for request in (client.get(NO_JOB), client.post("/v1/jobs", json=BODY), client.post(f"{NO_JOB}/cancel")):
            answer = await request
            rejected(answer, 500, "internal")
            assert "swordfish" not in answer.text


@pytest.fixture
def fragile(backends: Backends, s3_config: S3Config) -> Iterator[tuple[str, Api]]:
    """An API, and its database, which a test may take away."""
    with fresh_database(backends) as url, running("api", url, s3_config) as service, consumer(service) as api:
        yield url, api


def test_without_its_database_the_service_says_when_to_come_back(fragile: tuple[str, Api], backends: Backends) -> None:
    """503 with Retry-After; a stream answers 200, a `retry:` and its end. It recovers by itself."""
    url, api = fragile
    name = urlsplit(url).path[1:]
    job_id = api.create()
    stream = f"/v1/jobs/{job_id}/progress/stream"
    with api.http.stream("GET", stream) as live:
        text = live.iter_text()
        assert next(text).startswith("retry: ")
        cut = f"select pg_terminate_backend(pid) from pg_stat_activity where datname = '{name}'"
        asyncio.run(execute(backends.db_url, cut, f"alter database {name} rename to {name}_away"))
        assert all("event: error" not in part for part in text), "the live stream ends, for its client to come back"
    for answer in (
        api.http.get(f"/v1/jobs/{job_id}"),
        api.post(BODY),
        api.http.get("/v1/jobs"),
        api.http.get("/v1/events"),
    ):
        rejected(answer, 503, "infra_unavailable")
        assert int(answer.headers["Retry-After"]) >= 1
    for path in (stream, "/v1/events/stream"):
        assert_sent_away(api.http.get(path))
    ready = api.http.get("/readyz")
    assert (ready.status_code, ready.json()["status"]) == (503, "unavailable")
    assert ready.json()["checks"]["database"] != "ok"
    assert api.get("/healthz")["status"] == "ok"
    asyncio.run(execute(backends.db_url, f"alter database {name}_away rename to {name}"))
    until(lambda: api.http.get("/readyz").status_code == 200)
    assert api.job(job_id)["status"] == "queued"
    assert api.post(BODY).status_code == 202


def assert_sent_away(answer: httpx.Response) -> None:
    """Expect a stream that does nothing but tell its client to come back later."""
    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == "text/event-stream; charset=utf-8"
    name, _, millis = answer.text.partition(": ")
    # A blank line behind it would make an event without data of it, for some clients.
    assert (name, millis.removesuffix("\n").isdigit(), int(millis) >= 1000) == ("retry", True, True)


async def test_a_bug_on_a_streams_route_sends_the_client_away_for_a_while() -> None:
    """Any other status would make an EventSource give up for good."""
    broken = cast("Any", Broken())
    transport = httpx.ASGITransport(
        app=cast("Any", build_api_app(broken, HealthSources({}, BacklogGauges(broken), WriteProbe(broken))))
    )
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        for path in (f"{NO_JOB}/progress/stream", "/v1/events/stream"):
            assert_sent_away(await client.get(path))
