"""What holds on every route: ids, errors, methods, times."""

import re

import httpx
import pytest

from eventstore.ids import new_id
from tests.kit import Api

STAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")
BODY = {"type": "generate", "prompt": "x", "width": 64, "height": 64}


def test_the_service_says_who_it_is_and_how_it_feels(api: Api) -> None:
    """/v1/, /healthz, /readyz."""
    assert api.get("/v1/") == {"service": "dream-forge", "version": "v1"}
    health = api.get("/healthz")
    assert health["status"] == "ok"
    assert isinstance(health["ts"], int)
    ready = api.get("/readyz")
    assert ready["status"] == "ready"
    assert set(ready["checks"].values()) == {"ok"}


@pytest.mark.parametrize("header", ["X-Client-Request-Id", "X-Request-Id"])
def test_a_clients_request_id_is_echoed_and_kept_in_the_events_it_caused(api: Api, header: str) -> None:
    """One id follows a request from its header to the log."""
    answer = api.post(BODY, **{header: "order 66"})
    assert answer.headers["X-Request-Id"] == "order 66"
    job_id = answer.json()["job"]["id"]
    api.finished(job_id)
    assert all('"request_id":"order 66"' in event["meta"] for event in api.history(job_id))


@pytest.mark.parametrize("bad", ["", "x" * 129, "tab\there"])
def test_an_unusable_request_id_is_replaced(api: Api, bad: str) -> None:
    """1 to 128 printable ASCII characters, or a new one."""
    drawn = api.http.get("/healthz", headers={"X-Request-Id": bad}).headers["X-Request-Id"]
    assert drawn
    assert drawn != bad


def test_times_are_utc_with_six_digits(api: Api) -> None:
    """RFC 3339, always of one length."""
    job = api.finished(api.create())
    for moment in (job["created_at"], job["updated_at"], job["steps"][0]["started_at"]):
        assert STAMP.fullmatch(moment)
    assert STAMP.fullmatch(api.artifacts(job["id"])[0]["expires_at"])


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/nowhere", "not_found"),
        ("/v1/jobs/no-uuid", "not_found"),
        (f"/v1/jobs/{new_id()}", "not_found"),
        (f"/v1/jobs/{new_id()}/artifacts", "not_found"),
        (f"/v1/jobs/{new_id()}/progress", "not_found"),
        (f"/v1/jobs/{new_id()}/progress/stream", "not_found"),
        (f"/v1/jobs/{new_id()}/events", "not_found"),
    ],
)
def test_what_is_not_there_is_a_404_in_the_one_shape(api: Api, path: str, code: str) -> None:
    """code, message, correlation_id, and detail for clients of the old service."""
    answer = api.http.get(path)
    assert answer.status_code == 404
    body = answer.json()
    assert body["code"] == code
    assert body["message"] not in {"", code}
    assert body["correlation_id"] == answer.headers["X-Request-Id"]
    assert body["detail"]["code"] == code


def test_methods(api: Api) -> None:
    """HEAD on every GET but streams, OPTIONS with Allow, 405 with Allow, 307 for a trailing slash."""
    job_id = api.create()
    api.finished(job_id)
    head = api.http.head(f"/v1/jobs/{job_id}")
    assert head.status_code == 200
    assert head.content == b""
    assert api.http.head(f"/v1/jobs/{job_id}/progress/stream").status_code == 405
    options = api.http.options("/v1/jobs")
    assert options.status_code == 204
    assert "POST" in options.headers["Allow"]
    refused = api.http.delete(f"/v1/jobs/{job_id}")
    assert refused.status_code == 405
    assert "GET" in refused.headers["Allow"]
    assert refused.json()["code"] == "method_not_allowed"
    assert api.http.get(f"/v1/jobs/{job_id}/").status_code == 307


def test_a_job_carries_an_etag(api: Api) -> None:
    """If-None-Match spares the body while nothing has changed."""
    job = api.finished(api.create())
    etag = f'"v{job["version"]}"'
    answer = api.http.get(f"/v1/jobs/{job['id']}", headers={"If-None-Match": etag})
    assert (answer.status_code, answer.headers["ETag"], answer.content) == (304, etag, b"")
    assert api.http.get(f"/v1/jobs/{job['id']}", headers={"If-None-Match": '"v1"'}).status_code == 200


@pytest.mark.parametrize(
    ("content", "content_type", "status", "code"),
    [
        (b"{", "application/json", 422, "invalid_input"),
        (b"[]", "application/json", 422, "invalid_input"),
        (b'"\xff"', "application/json", 422, "invalid_input"),
        (b'{"type":"generate","prompt":"\\ud800"}', "application/json", 422, "invalid_input"),
        (b'{"type":"generate","prompt":"\\u0000"}', "application/json", 422, "invalid_input"),
        (b"a=b", "application/x-www-form-urlencoded", 415, "unsupported_media_type"),
        (b"x" * (2**20 + 1), "application/json", 413, "payload_too_large"),
        (b"[" * 100_000, "application/json", 422, "invalid_input"),
    ],
)
def test_bad_bodies(api: Api, content: bytes, content_type: str, status: int, code: str) -> None:
    """Bad input never becomes a 500."""
    answer = api.http.post("/v1/jobs", content=content, headers={"Content-Type": content_type})
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert answer.json()["details"]["field"]


def test_an_absent_content_type_counts_as_json(base_body: bytes, api: Api) -> None:
    """And so does any application/*+json."""
    for headers in ({}, {"Content-Type": "application/vnd.api+json; charset=utf-8"}):
        request = httpx.Request("POST", f"{api.base}/v1/jobs", content=base_body, headers=headers)
        assert api.http.send(request).status_code == 202


@pytest.fixture
def base_body() -> bytes:
    """A request as bytes."""
    return b'{"type":"generate","prompt":"x","width":64.0,"height":64}'


def test_the_history_is_paged_by_version(api: Api) -> None:
    """limit, after_version, has_more and next_after_version walk the whole history."""
    job_id = api.create()
    api.finished(job_id)
    path = f"/v1/jobs/{job_id}/events"
    whole = api.get(path)["events"]
    first = api.get(path, limit=4)
    assert (first["has_more"], first["next_after_version"]) == (True, 4)
    rest = api.get(path, after_version=4)
    assert first["events"] + rest["events"] == whole
    assert (rest["has_more"], rest["next_after_version"]) == (False, None)
    assert [one["version"] for one in whole] == list(range(1, len(whole) + 1))
    assert all(re.fullmatch("[0-9a-f]{64}", one["hash"]) for one in whole)
    for wrong in ({"limit": "0"}, {"limit": "1001"}, {"after_version": "-1"}, {"limit": "x"}):
        answer = api.http.get(path, params=wrong)
        assert answer.status_code == 422
        assert answer.json()["details"]["field"] == next(iter(wrong))
