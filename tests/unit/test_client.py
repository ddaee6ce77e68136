"""The HTTP client: resuming streams, telling errors apart, checking downloads."""

import hashlib
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import httpx
import msgspec
import pytest

from dreamforge.client.api_client import Client, message_to_log_line
from dreamforge.client.responses import ApiError, DamagedDownload, Unreachable
from dreamforge.client.sse import ServerSentEvent

Handler = Callable[[httpx.Request], httpx.Response]


def client(handler: Handler, patience_s: float = 60.0) -> Client:
    return Client("http://forge.test", patience_s=patience_s, transport=httpx.MockTransport(handler))


def frame(version: int, code: str = "step.start") -> str:
    return f'event: log\ndata: {{"code":"{code}"}}\nid: {version}\n\n'


class Script:
    """A server that gives one prepared answer after the other, and notes where each client wanted to resume."""

    def __init__(self, *answers: httpx.Response | Exception) -> None:
        self.answers = list(answers)
        self.resumed_from: list[str | None] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.resumed_from.append(request.headers.get("Last-Event-ID"))
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


CURSOR = "event: cursor\ndata: {}\nid: cursor-5\n\n"


def events(*frames: str) -> httpx.Response:
    return httpx.Response(200, headers={"Content-Type": "text/event-stream"}, text="retry: 0\n" + "".join(frames))


def test_a_broken_stream_resumes_after_the_last_whole_event() -> None:
    """The cut event is asked for again, and nothing comes twice."""
    script = Script(
        events(frame(1), frame(2), "event: log\nid: 3\ndata: {"),
        httpx.ConnectError("down"),
        events(frame(3), frame(4, "job.finish"), "event: progress\ndata: {}\n\n"),
    )
    messages = list(client(script).stream("j"))
    assert [message.last_event_id for message in messages] == ["1", "2", "3", "4", "4"]
    assert script.resumed_from == [None, "2", "2"]


def test_a_stream_that_closes_without_the_jobs_end_is_resumed() -> None:
    script = Script(events(frame(1)), events(), httpx.Response(204))
    assert [message.last_event_id for message in client(script).stream("j")] == ["1"]
    assert script.resumed_from == [None, "1", "1"]


def test_a_block_with_nothing_but_an_id_moves_the_place_to_resume_from() -> None:
    script = Script(events(frame(1), "id: 5\n\n"), httpx.Response(204))
    assert len(list(client(script).stream("j"))) == 1
    assert script.resumed_from == [None, "5"]


def test_a_finish_that_a_retry_follows_is_no_end() -> None:
    script = Script(events(frame(1, "job.finish"), frame(2, "job.retry_requested")), events(frame(3, "job.finish")))
    assert [message.last_event_id for message in client(script).stream("j")] == ["1", "2", "3"]


def test_a_stream_can_start_in_the_middle() -> None:
    script = Script(events(frame(8, "job.finish")))
    assert len(list(client(script).stream("j", "7"))) == 1
    assert script.resumed_from == ["7"]


def test_a_service_that_stays_away_is_given_up() -> None:
    script = Script(events(frame(1)), httpx.ConnectError("down"), httpx.ReadTimeout("silent"))
    with pytest.raises(Unreachable, match="went away"):
        list(client(script, patience_s=0).stream("j"))


def test_a_rejected_stream_is_an_error_at_once() -> None:
    rejection = httpx.Response(404, json={"code": "not_found", "message": "There is no such job."})
    with pytest.raises(ApiError, match="no such job"):
        list(client(Script(rejection)).stream("j"))


def test_a_proxys_error_in_the_middle_is_waited_out() -> None:
    """What stands in front of a service that restarts answers in its own words."""
    script = Script(events(frame(1)), httpx.Response(502, text="<html>"), events(frame(2, "job.finish")))
    assert [message.last_event_id for message in client(script).stream("j")] == ["1", "2"]


def test_a_stream_may_start_at_a_time() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        assert request.url.params["since_ts"] == "2026-01-02T12:00:00+01:00"
        return events(frame(8, "job.finish"))

    assert len(list(client(handler).stream("j", since="2026-01-02T12:00:00+01:00"))) == 1


def log_event(n: int) -> str:
    return f'data: {{"version":{n}}}\nid: cursor-{n}\n\n'


def test_the_whole_log_is_resumed_from_its_cursor() -> None:
    """Also from one that came without an event."""
    script = Script(httpx.Response(200, json={}), events(log_event(1), CURSOR), events(log_event(6)))
    seen = [(message.event, message.last_event_id) for message in islice(client(script).log_stream(), 2)]
    assert seen == [("message", "cursor-1"), ("message", "cursor-6")]
    assert script.resumed_from == [None, None, "cursor-5"]


def test_a_quiet_log_is_no_silence() -> None:
    """Heartbeats tell that the service is there, however often the line is cut between them."""
    stopped = httpx.Response(401, json={"code": "unauthorized", "message": "Enough."})
    quiet = [events(CURSOR) for _ in range(5)]
    with pytest.raises(ApiError, match="Enough"):
        list(client(Script(httpx.Response(200, json={}), *quiet, stopped), patience_s=0).log_stream())


def test_a_service_that_only_sends_away_is_given_up() -> None:
    with pytest.raises(Unreachable, match="went away"):
        list(client(lambda _: events(), patience_s=0).stream("j"))


def test_the_log_of_a_service_that_was_never_there_is_an_error_at_once() -> None:
    with pytest.raises(Unreachable, match="No service answers"):
        next(client(Script(httpx.ConnectError("down"))).log_stream())


def test_an_error_carries_what_the_service_said() -> None:
    body = {"code": "invalid_input", "message": "No.", "details": {"field": "count"}, "correlation_id": "c"}
    with pytest.raises(ApiError) as raised:
        client(Script(httpx.Response(422, json=body))).create_job({})
    error = raised.value
    assert (error.status, error.code, error.message, error.details) == (422, "invalid_input", "No.", {"field": "count"})


@pytest.mark.parametrize("status", [200, 502])
def test_a_stranger_on_the_port_is_not_the_service(status: int) -> None:
    with pytest.raises(Unreachable, match="not Dream Forge"):
        client(Script(httpx.Response(status, text="<html>"))).job("j")


def test_ids_are_quoted_in_the_path() -> None:
    seen: list[str] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request.url.raw_path.decode())
        return httpx.Response(200, json={})

    client(handler).job("../a b?")
    assert seen == ["/v1/jobs/..%2Fa%20b%3F"]


def test_the_history_is_read_page_by_page() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        after = int(request.url.params["after_version"])
        page = [{"version": version} for version in range(after + 1, min(after + 2, 5) + 1)]
        return httpx.Response(
            200, json={"events": page, "next_after_version": page[-1]["version"], "has_more": page[-1]["version"] < 5}
        )

    assert [event["version"] for event in client(handler).events("j")] == [1, 2, 3, 4, 5]


def test_the_whole_log_is_read_page_by_page() -> None:
    """A page may be empty where a filter lets nothing pass."""

    def handler(request: httpx.Request) -> httpx.Response:
        assert request.url.params["codes"] == "error"
        number = int(request.url.params.get("cursor", "0"))
        found = [] if number == 1 else [{"version": number}]
        return httpx.Response(200, json={"events": found, "next_cursor": str(number + 1), "has_more": number < 2})

    assert [event["version"] for event in client(handler).log_events(codes="error")] == [0, 2]


@pytest.mark.parametrize(
    ("limit", "asked", "count"), [(1, ["1"], 1), (200, ["200"], 200), (250, ["200"] * 2, 250), (None, ["200"] * 3, 450)]
)
def test_jobs_are_listed_page_by_page(limit: int | None, asked: list[str], count: int) -> None:
    """No page is asked for whose jobs nobody wants."""
    requests: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        start = int(request.url.params.get("cursor", "0"))
        end = min(start + int(request.url.params["limit"]), 450)
        page = [{"id": number} for number in range(start, end)]
        return httpx.Response(200, json={"jobs": page, "next_cursor": str(end) if end < 450 else None})

    assert [job["id"] for job in client(handler).jobs(limit=limit)] == list(range(count))
    assert [request.url.params["limit"] for request in requests] == asked


def test_log_lines_are_verbatim() -> None:
    """Only a line feed ends a line: JSON may hold the line separators of Unicode."""
    lines = ['{"message":"a\u2028b\u0085c"}', '{ "n": 1.0 }']
    script = Script(httpx.Response(200, text="".join(line + "\n" for line in lines)))
    assert list(client(script).logs("j")) == lines


def test_logs_that_break_off_are_an_error() -> None:
    class Broken(httpx.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            yield b'{"code":"job.created"}\n{"co'
            raise httpx.RemoteProtocolError("cut")

    lines = client(Script(httpx.Response(200, stream=Broken()))).logs("j")
    assert next(lines) == '{"code":"job.created"}'
    with pytest.raises(Unreachable, match="cut"):
        next(lines)


def test_a_message_of_a_stream_becomes_a_line_of_the_log() -> None:
    """With the event's code where the stream gives the job's error code."""
    data = {
        "ts": "t",
        "level": "error",
        "code": "oom",
        "message": "No memory left.",
        "step": "upscale",
        "payload": {"step_id": "s", "step": "upscale", "attempt": 3, "error_code": "oom"},
    }
    assert message_to_log_line("j", ServerSentEvent("error", msgspec.json.encode(data).decode(), "7")) == {
        "ts": "t",
        "level": "error",
        "code": "error",
        "message": "No memory left.",
        "job_id": "j",
        "step_id": "s",
        "step": "upscale",
        "attempt": 3,
        "error_code": "oom",
    }


def artifact(content: bytes) -> dict[str, object]:
    return {
        "s3_key": "dreamforge/default/jobs/j/generate/20250101T000000_0_64x64_7.png",
        "url": "http://store.test/key?X-Amz-Signature=s",
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }


def test_a_download_is_named_as_in_the_object_store(tmp_path: Path) -> None:
    path = client(Script(httpx.Response(200, content=b"pixels"))).download(artifact(b"pixels"), tmp_path)
    assert path == tmp_path / "20250101T000000_0_64x64_7.png"
    assert path.read_bytes() == b"pixels"


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (httpx.Response(200, content=b"pixelz"), DamagedDownload),
        (httpx.Response(200, content=b"pixel"), DamagedDownload),
        (httpx.Response(403), ApiError),
        (httpx.ReadError("cut"), Unreachable),
    ],
)
def test_a_download_that_fails_leaves_no_file(
    tmp_path: Path, answer: httpx.Response | Exception, error: type[Exception]
) -> None:
    """The signature of the URL is not told either."""
    with pytest.raises(error) as raised:
        client(Script(answer)).download(artifact(b"pixels"), tmp_path)
    assert "Signature" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_a_download_takes_no_more_than_was_recorded(tmp_path: Path) -> None:
    """Given an object that was replaced by one without an end, then the download ends and is rejected."""
    sent: list[bytes] = []

    def endless() -> Iterator[bytes]:
        while len(sent) < 1000:
            sent.append(bytes(2**16))
            yield sent[-1]

    with pytest.raises(DamagedDownload):
        client(Script(httpx.Response(200, content=endless()))).download(artifact(b"pixels"), tmp_path)
    assert len(sent) < 10
    assert list(tmp_path.iterdir()) == []


def test_ready_means_ready() -> None:
    script = Script(httpx.ConnectError("down"), httpx.Response(503, json={}), httpx.Response(200, json={}))
    service = client(script)
    assert [service.is_ready(), service.is_ready(), service.is_ready()] == [False, False, True]


def test_a_job_is_posted_as_json() -> None:
    bodies: list[object] = []

    def handler(request: httpx.Request) -> httpx.Response:
        bodies.append(msgspec.json.decode(request.content))
        return httpx.Response(202, json={"job": {"id": "j"}})

    assert client(handler).create_job({"prompt": "é"}) == {"id": "j"}
    assert bodies == [{"prompt": "é"}]


def test_a_key_and_a_wait_are_headers() -> None:
    """The key may hold any text; it goes as UTF-8."""

    def handler(request: httpx.Request) -> httpx.Response:
        headers = dict(request.headers.raw)
        assert (headers[b"Idempotency-Key"], headers[b"Prefer"]) == ("clé".encode(), b"wait=5")
        return httpx.Response(200, json={"job": {"id": "j"}})

    client(handler).create_job(b"{}", idempotency_key="clé", wait_s=5)
