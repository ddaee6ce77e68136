"""GET /v1/jobs/{id}/progress/stream, to the letter."""

import asyncio
import json
import re
import time
from contextlib import suppress
from typing import Any

import pytest

from artifacts.object_store import S3Config
from orchestrator.events import JobFinish, RetryRequested, StepError, StepRetry
from tests.http.conftest import LONE_HEARTBEAT_S, Scribe, invalid, live, minute, running, succeeded
from tests.kit import Api, History, Service, Sse, eventually, parse_sse

HEAD = ["ts", "level", "code", "message"]
ARTIFACT = [
    *("ts", "level", "code", "step", "item_index", "artifact_id", "s3_key", "format", "width", "height", "seed"),
    "payload",
]


def path(job_id: str) -> str:
    """Where a job's stream is."""
    return f"/v1/jobs/{job_id}/progress/stream"


def ids(events: list[Sse]) -> list[int]:
    """The versions that came."""
    return [int(one.id) for one in events if one.id is not None]


def failed(*, text: str = "Line\nbreak.") -> History:
    """A job whose upscale was tried twice and gave up, with something of everything in its history."""
    history = History(count=1).started("generate").wrote("generate", 0).finished("generate").started("upscale")
    given: dict[str, Any] = {
        "step_id": history.step_id("upscale"),
        "step_name": "upscale",
        "error_code": "oom",
        "error_message": text,
    }
    history.add(StepRetry(**given, attempt=1, reason="failure", delay_s=1.5)).started("upscale", 2)
    history.add(StepError(**given, attempt=2, item_index=None)).finished("upscale", "failed", 2)
    return history.add(JobFinish(status="failed"))


async def test_a_transcript_is_to_the_letter(lone: Api, scribe: Scribe) -> None:
    """Frames of event, data (compact JSON), id, in this order, each line ended by LF; `retry:` begins the first."""
    answer = lone.http.get(path(await scribe.write(failed())))
    assert answer.headers["Content-Type"] == "text/event-stream; charset=utf-8"
    assert (answer.headers["Cache-Control"], answer.headers["X-Accel-Buffering"]) == ("no-store", "no")
    assert answer.text.startswith("retry: 2000\nevent: log\n")
    assert "\r" not in answer.text
    *frames, end = answer.text.removeprefix("retry: 2000\n").split("\n\n")
    assert end == ""
    for frame in frames:
        kind, data, *rest = frame.split("\n")
        assert re.fullmatch("event: (log|artifact|error|progress)", kind)
        text = data.removeprefix("data: ")
        assert text == json.dumps(json.loads(text), ensure_ascii=False, separators=(",", ":"))
        assert bool(rest) == (kind != "event: progress")
        assert all(re.fullmatch(r"id: \d+", line) for line in rest)
        assert len(rest) <= 1


async def test_a_frame_tells_its_event_flat_and_as_payload(lone: Api, scribe: Scribe) -> None:
    """Artifacts and errors in shapes of their own, where `code` of an error is the job's error code."""
    job_id = await scribe.write(failed())
    events = [one for one in lone.stream(job_id) if one.id is not None]
    for sse, event in zip(events, lone.history(job_id), strict=True):
        data, payload = sse.data, json.loads(event["data"])
        assert (int(sse.id or 0), data["ts"], data["level"]) == (event["version"], event["ts"], event["level"])
        assert data["payload"] == payload
        match event["code"]:
            case "artifact.written":
                assert (sse.event, list(data)) == ("artifact", ARTIFACT)
                assert {name: data[name] for name in ARTIFACT[3:-1]} == {name: payload[name] for name in ARTIFACT[3:-1]}
            case "error":
                assert (sse.event, list(data)) == ("error", [*HEAD, "step", "payload"])
                assert (data["code"], data["message"], data["step"]) == ("oom", "Line\nbreak.", "upscale")
            case _:
                assert (sse.event, list(data)[:4], data["code"]) == ("log", HEAD, event["code"])
                assert payload.items() <= data.items()


async def test_events_come_as_they_happen_and_progress_after_them(lone: Api, scribe: Scribe) -> None:
    """To the last event of the job, then a last progress, then the server closes."""
    history = succeeded(count=1)
    whole, history.events = history.events, history.events[:1]
    job_id = await scribe.write(history)
    async with live(lone.base, path(job_id)) as frames:
        first, second = await frames.until("progress")
        assert first.startswith("retry: 2000\nevent: log\n")
        assert second.startswith("event: progress\n")
        for version in range(2, len(whole) + 1):
            history.events = whole[:version]
            await scribe.write(history, after=version - 1)
            came = await frames.until(f"\nid: {version}")
            assert not [one for one in came[:-1] if "\nid: " in one]
            told = await frames.until("event: progress")
        last = json.loads(told[-1].split("data: ")[1])
        assert last == lone.get(f"/v1/jobs/{job_id}/progress")
        assert last["progress"] == 1.0
        assert await frames.rest() == []


async def test_a_retried_jobs_stream_goes_on_after_its_first_end(lone: Api, scribe: Scribe) -> None:
    """Only the `job.finish` that is the job's last event ends it."""
    history = failed()
    retried = RetryRequested(step_id=history.step_id("upscale"), step_name="upscale")
    history.add(retried).started("upscale", 3).wrote("upscale", 0, attempt=3).finished("upscale", attempt=3)
    history.add(JobFinish(status="succeeded"))
    events = lone.stream(await scribe.write(history))
    assert ids(events) == list(range(1, len(history.events) + 1))
    assert (events[-1].event, events[-1].data["progress"]) == ("progress", 1.0)


async def test_silence_is_broken_by_heartbeats(lone: Api) -> None:
    """A comment at least every DF_SSE_HEARTBEAT_S, and a progress with it, neither with an id."""
    async with live(lone.base, path(lone.create())) as frames:
        await frames.until("event: progress")
        began = time.monotonic()
        for _ in range(3):
            assert await frames.next() == ":"
            assert re.fullmatch(r"event: progress\ndata: \{.*\}", await frames.next())
        assert time.monotonic() - began < 3 * LONE_HEARTBEAT_S + 2


@pytest.mark.parametrize(
    ("params", "header", "first"),
    [
        ({}, "3", 4),
        ({}, "0", 1),
        ({"last_event_id": "3"}, None, 4),
        ({"last_event_id": "5"}, "3", 4),
        ({"since_ts": minute(6).isoformat()}, None, 6),
        ({"since_ts": "2026-01-02T12:05:00.000001Z"}, None, 6),
        ({"since_ts": minute(0).isoformat()}, None, 1),
        ({"since_ts": minute(6).isoformat()}, "3", 4),
        ({"since_ts": minute(6).isoformat(), "last_event_id": "8"}, None, 9),
    ],
)
async def test_a_stream_begins_where_the_client_says(
    lone: Api, scribe: Scribe, params: dict[str, str], header: str | None, first: int
) -> None:
    """After the last id that it saw, in the header or the query, the header winning; or at a time; the id wins."""
    job_id = await scribe.write(succeeded())
    headers = {} if header is None else {"Last-Event-ID": header}
    answer = lone.http.get(path(job_id), params=params, headers=headers)
    assert ids(parse_sse(answer.text)) == list(range(first, 11))


@pytest.mark.parametrize("wrong", ["11", "999999999999999999999", "x", "-1", "1.0", "٣"])
async def test_an_id_that_is_no_version_of_the_job_is_rejected(lone: Api, scribe: Scribe, wrong: str) -> None:
    """One beyond the head, too; a time that is none likewise."""
    where = path(await scribe.write(succeeded()))
    for answer in (
        lone.http.get(where, headers=[(b"Last-Event-ID", wrong.encode())]),
        lone.http.get(where, params={"last_event_id": wrong}),
    ):
        details = answer.json()["details"]["field"]
        assert details in {"Last-Event-ID", "last_event_id"}
        invalid(answer, details)
    invalid(lone.http.get(where, params={"since_ts": "noon"}), "since_ts")


async def test_who_has_seen_the_end_gets_204(lone: Api, scribe: Scribe) -> None:
    """It ends an EventSource's reconnecting. Of a job that goes on there's more to come."""
    where = path(await scribe.write(succeeded()))
    for answer in (
        lone.http.get(where, headers={"Last-Event-ID": "10"}),
        lone.http.get(where, params={"last_event_id": "10"}),
    ):
        assert (answer.status_code, answer.content) == (204, b"")
    async with live(lone.base, f"{path(lone.create())}?last_event_id=1") as frames:
        assert frames.answer.status_code == 200


async def test_a_stopping_server_ends_its_streams_cleanly(
    lone: Api, lone_url: str, s3_config: S3Config, scribe: Scribe
) -> None:
    """SIGTERM: the answer is complete, and the client loses nothing by resuming at another server."""
    history = succeeded()
    whole, history.events = history.events, history.events[:4]
    job_id = await scribe.write(history)
    with running("api", lone_url, s3_config) as service:
        async with live(service.url, path(job_id)) as frames:
            came = await frames.until("event: progress")
            stopping = asyncio.create_task(asyncio.to_thread(Service.stop, service))
            came += await frames.rest()
            assert await stopping == 0
    seen = ids(parse_sse("\n\n".join(came)))
    history.events = whole
    await scribe.write(history, after=4)
    assert seen + ids(lone.stream(job_id, last_event_id=str(seen[-1]))) == list(range(1, 11))


async def test_streams_beyond_the_limit_are_told_to_come_back(tuned: Api) -> None:
    """DF_MAX_STREAMS, here 2: 200, a `retry:` of its own, and the end. A place that is free again is taken."""
    where = path(tuned.create())
    async with live(tuned.base, where) as one:
        await one.next()
        async with live(tuned.base, "/v1/events/stream") as two:
            await two.next()
            for shed in (where, "/v1/events/stream"):
                answer = tuned.http.get(shed)
                assert (answer.status_code, answer.headers["Content-Type"]) == (200, "text/event-stream; charset=utf-8")
                assert re.fullmatch(r"retry: \d{4,5}\n", answer.text)

    async def served() -> bool:
        async with live(tuned.base, where) as frames:
            with suppress(StopAsyncIteration):  # shed: the server has not seen yet that the others left
                return (await frames.next()).startswith("retry: 2000\n")
        return False

    await eventually(served)
