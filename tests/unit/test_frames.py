"""A job's events as they go over the wire."""

import json
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.frames import HEARTBEAT_FRAME, job_event_frame, progress_frame, retry_line
from eventstore.events import RecordedEvent
from eventstore.ids import new_id
from orchestrator import codec
from orchestrator.events import CancelRequested, DomainEvent, JobFinish, StepError, StepRetry
from projections.job_view import fold_events
from projections.progress import job_progress
from tests.kit import NOON, History, job_created

HISTORY = History().started("generate").wrote("generate", 0).finished("generate")
STEP = HISTORY.step_id("generate")


def stored(body: DomainEvent, version: int = 4) -> RecordedEvent:
    """An event as it is read from the log."""
    return raw(body.code, codec.encode(body), version=version)


def raw(code: str, data: str, *, version: int = 4, schema_version: int = 1) -> RecordedEvent:
    """An event as it is read from the log, whoever wrote it."""
    return RecordedEvent(
        stream_id=HISTORY.job_id,
        tenant="default",
        version=version,
        code=code,
        schema_version=schema_version,
        ts=datetime(2026, 1, 2, 12, 0, 0, 5, tzinfo=UTC),
        data=data,
        meta="{}",
        private=None,
        partition=0,
        position=1,
        category="job",
        event_id=new_id(),
        recorded_at=NOON,
        private_digest=None,
        hash=b"",
        chain=b"",
    )


def read(frame: bytes) -> tuple[str, Any, str | None]:
    """Event, data and id of a frame, which must name them in this order, each on a line that LF ends."""
    assert frame.endswith(b"\n\n")
    assert b"\r" not in frame
    lines = frame.decode()[:-2].split("\n")
    fields = [line.split(": ", 1) for line in lines]
    assert [name for name, _ in fields] in (["event", "data", "id"], ["event", "data"])
    values = dict(fields)
    assert json.dumps(json.loads(values["data"]), separators=(",", ":"), ensure_ascii=False) == values["data"]
    return values["event"], json.loads(values["data"]), values.get("id")


def error(item_index: int | None) -> StepError:
    """A step's final failure."""
    return StepError(
        step_id=STEP,
        step_name="generate",
        attempt=1,
        item_index=item_index,
        error_code="provider_error",
        error_message="no paint",
    )


def test_a_frame_is_event_data_id_to_the_letter() -> None:
    frame = job_event_frame(stored(CancelRequested(), version=12), separate_steps=False)
    assert frame == (
        b"event: log\n"
        b'data: {"ts":"2026-01-02T12:00:00.000005Z","level":"info","code":"job.cancel_requested",'
        b'"message":"Cancellation requested.","payload":{}}\n'
        b"id: 12\n\n"
    )


def test_an_artifact_has_a_shape_of_its_own() -> None:
    item = HISTORY.item("generate", 2)
    kind, data, version = read(job_event_frame(stored(item), separate_steps=False))
    assert (kind, version) == ("artifact", "4")
    assert data == {
        "ts": "2026-01-02T12:00:00.000005Z",
        "level": "info",
        "code": "artifact.written",
        "step": "generate",
        "item_index": 2,
        "artifact_id": str(item.artifact_id),
        "s3_key": "generate/2",
        "format": "png",
        "width": 64,
        "height": 64,
        "seed": 3,
        "payload": json.loads(codec.encode(item)),
    }


@pytest.mark.parametrize("item_index", [0, 5, None])
def test_an_error_bears_the_jobs_error_code(item_index: int | None) -> None:
    """And the item that it befell, where it was one."""
    body = error(item_index)
    kind, data, _ = read(job_event_frame(stored(body), separate_steps=False))
    assert kind == "error"
    assert data == {
        "ts": "2026-01-02T12:00:00.000005Z",
        "level": "error",
        "code": "provider_error",
        "message": "no paint",
        "step": "generate",
        **({} if item_index is None else {"item_index": item_index}),
        "payload": json.loads(codec.encode(body)),
    }


def test_a_log_line_names_its_step_if_it_is_about_one() -> None:
    about_job = read(job_event_frame(stored(JobFinish(status="failed")), separate_steps=False))[1]
    assert about_job.keys() == {"ts", "level", "code", "message", "status", "payload"}
    assert (about_job["level"], about_job["message"]) == ("error", "Job failed.")
    retry = StepRetry(
        step_id=STEP,
        step_name="generate",
        attempt=1,
        reason="failure",
        error_code="oom",
        error_message="no room",
        delay_s=1.5,
    )
    about_step = read(job_event_frame(stored(retry), separate_steps=False))[1]
    assert about_step.keys() == {"ts", "level", "code", "message", "payload"} | about_step["payload"].keys()
    assert (about_step["level"], about_step["step"]) == ("warning", "generate")
    assert about_step["message"] == "Step generate will be tried again in 1.5 s: no room"


@pytest.mark.parametrize(("index", "apart"), [(0, "log"), (1, "step"), (2, "artifact"), (3, "step")], ids=str)
def test_steps_start_and_finish_apart_only_where_asked_for(index: int, apart: str) -> None:
    """Given a history of created, start, artifact, finish, when steps are wanted apart, then only those two are."""
    body = HISTORY.events[index].body
    assert body is not None
    together = job_event_frame(stored(body), separate_steps=False)
    assert read(job_event_frame(stored(body), separate_steps=True))[0] == apart
    assert read(together)[0] == ("artifact" if apart == "artifact" else "log")
    assert job_event_frame(stored(body), separate_steps=True).split(b"\n", 1)[1] == together.split(b"\n", 1)[1]


def test_the_payload_repeats_the_events_data() -> None:
    created = job_created()
    data = read(job_event_frame(stored(created), separate_steps=False))[1]
    assert data["payload"] == json.loads(codec.encode(created))
    assert "castle" not in json.dumps(data)


@pytest.mark.parametrize(
    ("code", "schema_version"), [("job.polished", 1), ("job.finish", 2)], ids=["code", "schema-version"]
)
def test_what_this_release_does_not_know_is_passed_on(code: str, schema_version: int) -> None:
    kind, data, version = read(
        job_event_frame(raw(code, '{"shine":1.5}', schema_version=schema_version), separate_steps=True)
    )
    assert (kind, version) == ("log", "4")
    assert (data["level"], data["code"], data["message"]) == ("info", code, code)
    assert data["payload"] == {"shine": 1.5}


def test_a_line_break_in_the_data_does_not_end_the_frame() -> None:
    """Given data that another writer spread over lines, then the frame's data is one line all the same."""
    spread = '{\n "text": "a\\nb",\r\n "n": 1.50\n}'
    frame = job_event_frame(raw("job.polished", spread), separate_steps=False)
    assert b"\r" not in frame
    assert frame.count(b"\n") == 4
    assert b'"payload":{"text":"a\\nb","n":1.50}}\n' in frame


@pytest.mark.parametrize("data", ['{"a":"\\ud800"}', '{"a":' + "[" * 9999 + "]" * 9999 + "}"], ids=["half", "deep"])
@pytest.mark.parametrize("code", ["job.polished", "job.finish"])
def test_data_that_is_json_to_postgresql_alone_does_not_end_the_stream(code: str, data: str) -> None:
    """Given half a surrogate pair, or more brackets than we open, then the event is told without its data."""
    kind, told, version = read(job_event_frame(raw(code, data), separate_steps=True))
    assert (kind, told["code"], told["payload"], version) == ("log", code, {}, "4")


@given(st.text())
def test_any_text_keeps_to_its_frame(text: str) -> None:
    """Line separators of other alphabets are no line ends of the stream."""
    body = msgspec.structs.replace(error(None), error_message=text)
    assert read(job_event_frame(stored(body), separate_steps=False))[1]["message"] == text


def test_progress_has_no_id_so_that_a_resume_skips_nothing() -> None:
    job = fold_events(HISTORY.events)
    assert job is not None
    kind, data, version = read(progress_frame(job_progress(job)))
    assert (kind, version) == ("progress", None)
    assert data == {
        "progress": 0.5,
        "items": [],
        "stages": [{"name": "generate", "weight": 0.5}, {"name": "upscale", "weight": 0.5}],
    }


def test_what_keeps_a_stream_alive_has_no_id_either() -> None:
    assert retry_line(2000) == b"retry: 2000\n"
    assert HEARTBEAT_FRAME == b":\n\n"


def test_ids_are_the_versions_of_the_job() -> None:
    frames = [
        job_event_frame(stored(decoded.body, decoded.version), separate_steps=False)
        for decoded in HISTORY.events
        if decoded.body is not None
    ]
    assert [read(frame)[2] for frame in frames] == ["1", "2", "3", "4"]
