"""What holds on every route: JSON, times, request ids, methods, compression."""

import gzip
import json
import re
from collections.abc import Iterator
from uuid import UUID

import httpx
import pytest

from tests.http.conftest import BODY, Scribe, invalid, minute, rejected, succeeded
from tests.kit import NOBODY, Api, History, Service, project_root

STAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")
DOCUMENT = json.loads((project_root() / "docs" / "openapi" / "openapi.v1.json").read_text())
PATHS = {path: {method.upper() for method in item} & {"GET", "POST"} for path, item in DOCUMENT["paths"].items()}
STREAMS = [path for path in PATHS if path.endswith("/stream")]
READS = [path for path, methods in PATHS.items() if "GET" in methods and path not in STREAMS and "model" not in path]
COMPRESSED = {"Accept-Encoding": "gzip"}
PLAIN = {"Accept-Encoding": "identity"}


@pytest.fixture(scope="module")
def ids(service: Service) -> Iterator[dict[str, str]]:
    """What stands in the braces of paths: a job that has ended, and one of its artifacts."""
    api = Api(service.url)
    job_id = api.create(count=4)
    api.finished(job_id)
    yield {"job_id": job_id, "artifact_id": api.artifacts(job_id)[0]["id"]}
    api.close()


def test_the_service_says_who_it_is(api: Api) -> None:
    assert api.get("/v1/") == {"service": "dream-forge", "version": "v1"}


def test_json_is_compact_and_utf_8(api: Api) -> None:
    answer = api.http.get(f"/v1/jobs/{api.create(prompt='Schloß 城 🏰', scale=None)}")
    assert answer.headers["Content-Type"] == "application/json"
    compact = json.dumps(answer.json(), ensure_ascii=False, separators=(",", ":"))
    assert answer.content.decode() == compact
    assert "Schloß 城 🏰" in compact


def test_times_are_utc_with_six_digits(api: Api, ids: dict[str, str]) -> None:
    """RFC 3339, always of one length, wherever a time stands."""
    job = api.job(ids["job_id"])
    moments = [job["created_at"], job["updated_at"], *(step["started_at"] for step in job["steps"])]
    moments += [step["finished_at"] for step in job["steps"]]
    moments += [one["expires_at"] for one in api.artifacts(job["id"])]
    moments += [event["ts"] for event in api.history(job["id"])]
    assert all(STAMP.fullmatch(moment) for moment in moments)


@pytest.mark.parametrize(
    "written",
    [
        "2026-01-02T12:02:00Z",
        "2026-01-02t12:02:00.000000z",
        "2026-01-02T12:02:00",
        "2026-01-02 12:02:00",
        "2026-01-02T14:02:00+02:00",
        "2026-01-02T14:02:00 02:00",
        "2026-01-02T10:32:00-01:30",
    ],
)
async def test_a_time_may_have_any_offset(written: str, lone: Api, scribe: Scribe) -> None:
    """None means UTC, and a blank where a `+` was meant reads as `+`."""
    job_id = await scribe.write(succeeded())
    assert lone.get(f"/v1/jobs/{job_id}", as_of=written)["version"] == 2
    assert minute(2).isoformat() == "2026-01-02T12:02:00+00:00"


def test_a_time_that_is_none_is_rejected(lone: Api) -> None:
    path = f"/v1/jobs/{lone.create()}"
    for text in (
        "",
        "noon",
        "1767355320",
        "2026-13-02T12:00:00Z",
        "2026-01-02T12:00:00+25:00",
        "\uff12026-01-02T12:00:00Z",
    ):
        invalid(lone.http.get(path, params={"as_of": text}), "as_of")
        invalid(lone.http.get(f"{path}/logs", params={"since_ts": text}), "since_ts")


@pytest.mark.parametrize("header", ["X-Client-Request-Id", "X-Request-Id"])
def test_a_clients_request_id_is_echoed_and_ours_is_kept_in_the_events(api: Api, header: str) -> None:
    """One id, which is drawn here, follows a request into the log; the client's, which may be a name, does not."""
    answer = api.post(BODY, **{header: "order 66"})
    assert answer.headers["X-Request-Id"] == "order 66"
    job_id = answer.json()["job"]["id"]
    api.finished(job_id)
    [kept] = {json.loads(event["meta"])["request_id"] for event in api.history(job_id)}
    assert UUID(kept).version == 7


def test_of_two_request_ids_the_clients_own_wins(api: Api) -> None:
    headers = {"X-Client-Request-Id": "mine", "X-Request-Id": "proxy's"}
    assert api.http.get("/healthz", headers=headers).headers["X-Request-Id"] == "mine"
    headers["X-Client-Request-Id"] = "x" * 129
    assert api.http.get("/healthz", headers=headers).headers["X-Request-Id"] == "proxy's"


@pytest.mark.parametrize("good", ["x", "x" * 128, "~!{} x"])
def test_a_request_id_is_1_to_128_printable_ascii_characters(api: Api, good: str) -> None:
    answer = api.http.get("/nowhere", headers={"X-Request-Id": good})
    assert answer.headers["X-Request-Id"] == good


@pytest.mark.parametrize("bad", ["", "x" * 129, "tab\there", "ümlaut"])
def test_an_unusable_request_id_is_replaced(api: Api, bad: str) -> None:
    drawn = api.http.get("/healthz", headers=[(b"X-Request-Id", bad.encode())]).headers["X-Request-Id"]
    assert 1 <= len(drawn) <= 128
    assert drawn != bad


@pytest.mark.parametrize("path", READS)
def test_head_answers_like_get_without_the_body(api: Api, ids: dict[str, str], path: str) -> None:
    path = path.format(**ids)
    head, get = api.http.head(path), api.http.get(path)
    assert (head.status_code, head.content) == (get.status_code, b"")
    assert head.headers.get("Content-Type") == get.headers.get("Content-Type")
    assert head.headers["X-Request-Id"]


@pytest.mark.parametrize("path", STREAMS)
def test_a_stream_has_no_head(api: Api, ids: dict[str, str], path: str) -> None:
    answer = api.http.head(path.format(**ids))
    assert (answer.status_code, answer.headers["Allow"], answer.content) == (405, "GET", b"")


@pytest.mark.parametrize("path", PATHS)
def test_options_tells_the_methods(api: Api, ids: dict[str, str], path: str) -> None:
    """204 with Allow."""
    answer = api.http.options(path.format(model_id="x", **ids))
    assert (answer.status_code, answer.content) == (204, b"")
    head = {"HEAD"} if "GET" in PATHS[path] and path not in STREAMS else set()
    assert set(answer.headers["Allow"].split(", ")) == PATHS[path] | head | {"OPTIONS"}


@pytest.mark.parametrize("path", [path for path in PATHS if not path.endswith("/")])
def test_a_trailing_slash_is_redirected(api: Api, ids: dict[str, str], path: str) -> None:
    """307, which keeps method and body; the query stays. To a path, since who ends TLS is not known here."""
    path = path.format(model_id="x", **ids)
    method = "GET" if "GET" in PATHS.get(path, {"GET"}) else "POST"
    answer = api.http.request(method, f"{path}/?limit=3")
    assert answer.status_code == 307
    assert answer.headers["Location"] == f"{path}?limit=3"


def test_a_redirected_post_arrives(lone: Api) -> None:
    """The base path, too, is found without its slash."""
    assert lone.http.post("/v1/jobs/", json=BODY, follow_redirects=True).status_code == 202
    assert lone.http.get("/v1", follow_redirects=True).json()["version"] == "v1"


@pytest.mark.parametrize("path", READS)
def test_unknown_query_parameters_are_ignored(api: Api, ids: dict[str, str], path: str) -> None:
    path = path.format(**ids)
    assert api.http.get(path, params={"colour": "red"}).status_code == api.http.get(path).status_code


def test_json_and_ndjson_over_a_kilobyte_are_gzipped_on_request(api: Api, ids: dict[str, str]) -> None:
    for path in (f"/v1/jobs/{ids['job_id']}/{part}" for part in ("events", "logs")):
        answer = api.http.get(path, headers=COMPRESSED)
        assert answer.headers["Content-Encoding"] == "gzip"
        assert "Accept-Encoding" in answer.headers["Vary"]
        plain = api.http.get(path, headers=PLAIN)
        assert "Content-Encoding" not in plain.headers
        assert len(plain.content) > 1000
        assert answer.content == plain.content
        with api.http.stream("GET", path, headers=COMPRESSED) as raw:
            assert gzip.decompress(b"".join(raw.iter_raw())) == plain.content


@pytest.mark.parametrize(
    ("accepted", "gzipped"),
    [
        ("gzip", True),
        ("GZip;q=0.5, deflate", True),
        ("x-gzip", True),
        ("*", True),
        ("br, gzip;q=1.0, identity;q=0.5", True),
        ("identity;q=0, *", True),
        ("gzip;q=0", False),
        ("gzip; q=0.000", False),
        ("identity", False),
        ("*;q=0", False),
        ("gzip;q=0, *;q=1", False),
        ("gzip;q=0.5, identity;q=1", False),
        ("gzip;q=9", False),
        ("notgzip", False),
        ("", False),
    ],
)
def test_gzip_is_for_those_who_accept_it(api: Api, ids: dict[str, str], accepted: str, gzipped: bool) -> None:  # noqa: FBT001  # a column
    """Weights are heeded, one of zero above all."""
    path = f"/v1/jobs/{ids['job_id']}/events"
    answer = api.http.get(path, headers={"Accept-Encoding": accepted})
    assert ("Content-Encoding" in answer.headers) == gzipped
    assert "Accept-Encoding" in answer.headers["Vary"]


@pytest.mark.parametrize("coding", ["gzip", "GZIP, identity", "br", "zstd"])
def test_an_encoded_body_is_named(lone: Api, coding: str) -> None:
    """Given a body that is not read as it is sent, then 415, which says what is; `identity` is no encoding."""
    for path in ("/v1/jobs", f"/v1/jobs/{NOBODY}/cancel"):
        answer = lone.http.post(path, content=gzip.compress(b"{}"), headers={"Content-Encoding": coding})
        assert rejected(answer, 415, "unsupported_media_type")["field"] == "Content-Encoding"
        assert answer.headers["Accept-Encoding"] == "identity"
    assert lone.http.post("/v1/jobs", json=BODY, headers={"Content-Encoding": "identity"}).status_code == 202


def test_a_byte_order_mark_is_passed_over(lone: Api) -> None:
    """That of UTF-8; the others are named."""
    text = json.dumps(BODY)
    assert lone.http.post("/v1/jobs", content=text.encode("utf-8-sig")).status_code == 202
    for encoding in ("utf-16", "utf-32"):
        reason = invalid(lone.http.post("/v1/jobs", content=text.encode(encoding)), "body")
        assert encoding.upper() in reason


def test_what_is_small_is_not_gzipped(api: Api) -> None:
    assert "Content-Encoding" not in api.http.get("/v1/", headers=COMPRESSED).headers


async def test_streams_are_never_gzipped(lone: Api, scribe: Scribe) -> None:
    job_id = await scribe.write(succeeded(count=9))
    answer = lone.http.get(f"/v1/jobs/{job_id}/progress/stream", headers=COMPRESSED)
    assert len(answer.content) > 1000
    assert "Content-Encoding" not in answer.headers
    with lone.http.stream("GET", "/v1/events/stream", headers=COMPRESSED) as stream:
        assert "Content-Encoding" not in stream.headers


@pytest.mark.parametrize(
    "content_type", [None, "application/json", "Application/JSON; charset=utf-8", "application/x+json"]
)
def test_an_absent_content_type_counts_as_json(lone: Api, content_type: str | None) -> None:
    """And so does any application/*+json."""
    headers = {} if content_type is None else {"Content-Type": content_type}
    request = httpx.Request("POST", f"{lone.base}/v1/jobs", content=json.dumps(BODY), headers=headers)
    assert lone.http.send(request).status_code == 202


async def test_every_documented_field_of_a_job_is_there(lone: Api, scribe: Scribe) -> None:
    """Null where nothing is known."""
    job = lone.job(await scribe.write(History(scale=None)))
    assert (job["error_code"], job["error_message"], job["params"]["chain"]) == (None, None, None)
    assert job["steps"][0]["started_at"] is job["steps"][0]["finished_at"] is None


async def test_job_answers_carry_links_that_lead_somewhere(lone: Api, scribe: Scribe) -> None:
    job = lone.job(await scribe.write(succeeded()))
    base = f"/v1/jobs/{job['id']}"
    assert job["links"] == {
        "self": base,
        "artifacts": f"{base}/artifacts",
        "progress": f"{base}/progress",
        "stream": f"{base}/progress/stream",
        "events": f"{base}/events",
    }
    assert all(lone.http.get(link).status_code == 200 for link in job["links"].values())
