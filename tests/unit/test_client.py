"""The HTTP client: resuming streams, telling errors apart, checking downloads."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import httpx
import msgspec
import pytest

from dreamforge.client import ApiError, Client, Damaged, Unreachable

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


def events(*frames: str) -> httpx.Response:
    return httpx.Response(200, headers={"Content-Type": "text/event-stream"}, text="retry: 0\n\n" + "".join(frames))


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


def test_a_refused_stream_is_an_error_at_once() -> None:
    refusal = httpx.Response(404, json={"code": "not_found", "message": "There is no such job."})
    with pytest.raises(ApiError, match="no such job"):
        list(client(Script(refusal)).stream("j"))


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
        (httpx.Response(200, content=b"pixelz"), Damaged),
        (httpx.Response(200, content=b"pixel"), Damaged),
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


def test_ready_means_ready() -> None:
    script = Script(httpx.ConnectError("down"), httpx.Response(503, json={}), httpx.Response(200, json={}))
    service = client(script)
    assert [service.ready(), service.ready(), service.ready()] == [False, False, True]


def test_a_job_is_posted_as_json() -> None:
    bodies: list[object] = []

    def handler(request: httpx.Request) -> httpx.Response:
        bodies.append(msgspec.json.decode(request.content))
        return httpx.Response(202, json={"job": {"id": "j"}})

    assert client(handler).create_job({"prompt": "é"}) == {"id": "j"}
    assert bodies == [{"prompt": "é"}]
