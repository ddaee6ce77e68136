"""What the command line shows of a job."""

import io
import re

import msgspec
import pytest
from rich.console import Console, RenderableType

from dreamforge.cli import show
from dreamforge.client.responses import JsonObject
from dreamforge.client.sse import ServerSentEvent

JOB = {
    "id": "j1",
    "status": "queued",
    "steps": [{"name": "generate"}, {"name": "upscale"}],
    "summary": {"count": 2, "completed": 0},
}


def message(event: str, **data: object) -> ServerSentEvent:
    return ServerSentEvent(event, msgspec.json.encode(data).decode(), "1")


def log(code: str, step: str | None = None, **payload: object) -> ServerSentEvent:
    return message("log", code=code, message=f"{code} said.", step=step, payload=payload)


def artifact(step: str, item: int) -> ServerSentEvent:
    return message("artifact", code="artifact.written", step=step, item_index=item)


def rendered(renderable: RenderableType) -> str:
    out = io.StringIO()
    Console(file=out, width=200).print(renderable)
    return out.getvalue()


def test_a_course_counts_each_image_once() -> None:
    """A replayed event adds nothing."""
    job_progress = show.JobProgress(JOB)
    lines = [job_progress.apply_message(artifact("generate", item)) for item in (0, 1, 1)]
    assert lines == ["generate 1/2", "generate 2/2", "generate 2/2"]
    assert (job_progress.images_written("generate"), job_progress.images_written("upscale")) == (2, 0)


def test_a_course_follows_each_step_and_the_job() -> None:
    job_progress = show.JobProgress(JOB)
    seen = []
    for one in (
        log("step.start", "generate", attempt=1),
        log("step.retry", "generate", attempt=1),
        log("step.start", "generate", attempt=2),
        log("step.finish", "generate", status="succeeded"),
        log("step.start", "upscale", attempt=1),
        log("step.finish", "upscale", status="failed"),
        log("job.finish", status="failed"),
    ):
        assert job_progress.apply_message(one) is not None
        seen.append((job_progress.states["generate"], job_progress.states["upscale"], job_progress.status))
    assert seen == [
        ("running", "queued", "running"),
        ("queued", "queued", "running"),
        ("running", "queued", "running"),
        ("succeeded", "queued", "running"),
        ("succeeded", "running", "running"),
        ("succeeded", "failed", "running"),
        ("succeeded", "failed", "failed"),
    ]


def test_progress_and_errors_are_taken_in() -> None:
    job_progress = show.JobProgress(JOB)
    assert job_progress.apply_message(message("progress", progress=0.25, items=[], stages=[])) is None
    assert job_progress.progress == 0.25
    assert (
        job_progress.apply_message(message("error", code="provider_error", message="It broke.", step="upscale"))
        == "It broke."
    )


@pytest.mark.parametrize("terminal", [True, False])
def test_following_ends_with_the_jobs_last_status(terminal: bool) -> None:  # noqa: FBT001 - a case
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=120)
    messages = [log("step.start", "generate"), artifact("generate", 0), log("job.finish", status="cancelled")]
    assert show.follow_job(JOB, messages, console) == "cancelled"
    assert "1/2" in out.getvalue()


def test_a_history_tells_what_matters_of_each_event() -> None:
    def event(version: int, code: str, step: str | None, data: JsonObject) -> JsonObject:
        text = msgspec.json.encode(data).decode()
        return {"version": version, "ts": "2026-01-02T03:04:05.678901Z", "code": code, "step": step, "data": text}

    planned = {"generate": {"width": 64, "height": 32, "count": 2, "seed": 7}, "upscale": {"scale": 2}}
    written = {"item_index": 1, "width": 128, "height": 64, "seed": 9, "bytes": 12345, "s3_key": "k", "attempt": 1}
    failed = {"error_code": "timeout", "error_message": "too [slow]", "attempt": 3}
    shown = rendered(
        show.history_table(
            [
                event(1, "job.created", None, planned),
                event(2, "artifact.written", "upscale", written),
                event(3, "error", "upscale", failed),
            ]
        )
    )
    assert "2 images, 64x32, upscaled by 2, seed 7" in shown
    assert "item 1, 128x64, seed 9, 12,345 bytes, attempt 1" in shown
    assert "attempt 3, timeout, too [slow]" in shown


def test_a_failed_job_says_why() -> None:
    step = {"name": "generate", "status": "failed", "attempt": 3, "started_at": None, "finished_at": None}
    failed = {"status": "failed", "steps": [step], "error_code": "oom", "error_message": "No [memory] left."}
    assert "oom: No [memory] left." in rendered(show.job_table(JOB | failed))


def test_a_list_of_jobs_has_a_line_for_each() -> None:
    times = {"created_at": "2026-01-02T03:04:05.678901Z", "updated_at": "2026-01-02T03:04:06.678901Z"}
    shown = rendered(show.job_list_table([JOB | times, JOB | times | {"id": "j2", "status": "failed"}]))
    assert [line.split()[1] for line in shown.splitlines() if "0/2" in line] == ["j1", "j2"]
    assert "failed" in shown


def test_a_log_line_tells_time_level_code_and_message() -> None:
    line = {"ts": "2026-01-02T03:04:05.678901Z", "level": "error", "code": "job.finish", "message": "Job [b] failed."}
    assert re.fullmatch(r"\d\d:\d\d:05\.678  error    job\.finish +Job \[b\] failed\.", show.log_line_text(line))


def test_an_event_of_the_whole_log_names_its_stream() -> None:
    event = {
        "version": 9,
        "ts": "2026-01-02T03:04:05.678901Z",
        "code": "artifact.written",
        "step": "upscale",
        "data": '{"item_index":2}',
        "stream": "018f0000-0000-7000-8000-000000000001",
        "category": "job",
    }
    text = show.event_line_text(event)
    assert "job 018f0000-0000-7000-8000-000000000001    9  artifact.written" in text
    assert text.endswith("upscale   item 2")
