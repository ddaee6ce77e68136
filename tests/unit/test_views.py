"""What users see of a job, event by event."""

import random
from datetime import timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from orchestrator.events import (
    CancelRequested,
    JobErased,
    JobFinish,
    PersonalText,
    RetryRequested,
    StepError,
    StepRetry,
)
from projections.job_view import JobView, MissingPrecedingEvent, evolve_view, fold_events, history_as_of
from projections.progress import job_progress
from projections.rows import ArtifactRow, JobRows, artifact_rows, job_row, rows_to_view, step_rows
from tests import histories
from tests.kit import NOON, History


def seen(history: History) -> JobView:
    """The view after a whole history."""
    found = fold_events(history.events)
    assert found is not None
    return found


def chained(count: int = 2) -> History:
    """A chained job that went well, but for its last event."""
    items = range(count)
    history = History(count=count).started("generate").wrote("generate", *items).finished("generate")
    return history.started("upscale").wrote("upscale", *items).finished("upscale")


def test_a_new_job_is_queued_with_all_its_steps() -> None:
    job = seen(History())
    assert job.status == "queued"
    assert [(step.name, step.status) for step in job.steps] == [("generate", "queued"), ("upscale", "queued")]
    assert job.params["prompt"] == "a castle"
    assert job.steps[1].metadata == {"scale": 2, "impl": "auto"}


def test_a_chained_job_never_reads_succeeded_before_job_finish() -> None:
    history = chained()
    job: JobView | None = None
    for event in history.events:
        job = evolve_view(job, event)
        assert job.status in {"queued", "running"}
    assert seen(history.add(JobFinish(status="succeeded"))).status == "succeeded"


def test_a_step_that_never_started_stays_queued_in_a_failed_job() -> None:
    history = History().started("generate")
    error = StepError(
        step_id=history.step_id("generate"),
        step_name="generate",
        attempt=1,
        item_index=1,
        error_code="provider_error",
        error_message="no paint",
    )
    job = seen(history.add(error).finished("generate", "failed").add(JobFinish(status="failed")))
    assert [step.status for step in job.steps] == ["failed", "queued"]
    assert (job.status, job.error_code, job.error_message) == ("failed", "provider_error", "no paint")


def test_a_step_that_never_started_is_cancelled_in_a_cancelled_job() -> None:
    job = seen(History().add(CancelRequested(), JobFinish(status="cancelled")))
    assert [step.status for step in job.steps] == ["cancelled", "cancelled"]
    assert job.error_code == "cancelled"


def test_a_retried_step_is_queued_and_keeps_its_first_start() -> None:
    history = History(count=2).started("generate")
    retry = StepRetry(
        step_id=history.step_id("generate"),
        step_name="generate",
        attempt=1,
        reason="failure",
        error_code="oom",
        error_message="m",
        delay_s=1.0,
    )
    assert seen(history.add(retry)).steps[0].status == "queued"
    again = seen(history.started("generate", 2))
    assert (again.steps[0].status, again.steps[0].attempt, again.steps[0].started_at) == ("running", 2, NOON)


def test_a_step_that_never_started_fails_with_its_attempts_counted() -> None:
    history = History()
    step: dict[str, Any] = {"step_id": history.step_id("generate"), "step_name": "generate"}
    why: dict[str, Any] = {"error_code": "internal", "error_message": "the registry is broken"}
    waiting = seen(history.add(StepRetry(**step, **why, attempt=1, reason="not_started", delay_s=1.0)))
    assert (waiting.status, waiting.steps[0].status, waiting.steps[0].attempt) == ("queued", "queued", 1)
    history.add(StepError(**step, **why, attempt=2, item_index=None)).finished("generate", "failed", 2)
    job = seen(history.add(JobFinish(status="failed")))
    assert (job.status, job.error_message, job.steps[0].status) == ("failed", "the registry is broken", "failed")
    assert (job.steps[0].attempt, job.steps[0].started_at) == (2, None)


def test_a_requested_retry_queues_the_job_again_and_forgets_the_error() -> None:
    history = History().started("generate").finished("generate", "failed").add(JobFinish(status="failed"))
    job = seen(history.add(RetryRequested(step_id=history.step_id("generate"), step_name="generate")))
    assert (job.status, job.error_code, job.steps[0].status) == ("queued", None, "queued")


def test_a_retry_at_an_earlier_step_queues_the_failed_one_too() -> None:
    """Given a generated image that was lost, then it is listed on, and takes the bytes of the one made again."""
    history = History().started("generate").wrote("generate", 0).finished("generate").started("upscale")
    history.finished("upscale", "failed").add(JobFinish(status="failed"))
    history.add(RetryRequested(step_id=history.step_id("generate"), step_name="generate", items=[0]))
    job = seen(history)
    assert [(step.status, step.finished_at, step.completed) for step in job.steps] == [
        ("queued", None, 1),
        ("queued", None, 0),
    ]
    again = replace(history.rewritten("generate", 0), attempt=2)
    job = seen(history.started("generate", 2).add(again).finished("generate", attempt=2))
    assert [(one.bytes, one.sha256) for one in job.artifacts] == [(again.bytes, again.sha256)]
    assert (job.steps[0].status, job.steps[0].completed) == ("succeeded", 1)


def test_an_event_seen_before_changes_nothing_and_a_gap_is_rejected() -> None:
    history = chained()
    job = seen(history)
    assert evolve_view(job, history.events[3]) is job
    with pytest.raises(MissingPrecedingEvent):
        evolve_view(seen(History()), history.events[4])
    with pytest.raises(MissingPrecedingEvent):
        evolve_view(None, history.events[1])


def test_updated_at_is_the_newest_event() -> None:
    history = History()
    later = msgspec.structs.replace(history.started("generate").events[-1], ts=NOON + timedelta(hours=1))
    history.events[-1] = later
    job = seen(history)
    assert (job.created_at, job.updated_at) == (NOON, NOON + timedelta(hours=1))


@given(st.integers(min_value=1, max_value=5), st.data())
def test_a_view_survives_its_rows_at_any_point(count: int, data: st.DataObject) -> None:
    """Read model ⊕ tail equals the whole fold, wherever the row stands."""
    history = chained(count).add(JobFinish(status="succeeded"))
    cut = data.draw(st.integers(min_value=1, max_value=len(history.events)))
    kept = fold_events(history.events[:cut])
    assert kept is not None
    stored = JobRows(
        job=job_row(kept), steps=tuple(step_rows(kept)), artifacts=tuple(artifact_rows(kept, kept.artifacts))
    )
    back: JobView | None = rows_to_view(msgspec.json.decode(msgspec.json.encode(stored), type=JobRows))
    for event in history.events[cut:]:
        back = evolve_view(back, event)
    assert back == seen(history)
    assert all(isinstance(row, ArtifactRow) for row in stored.artifacts or [])


def test_a_row_with_a_step_that_is_no_kind_is_refused() -> None:
    """Given a row as a later release may write it, then reading it fails: it is not shown half-known."""
    view = seen(chained())
    rows = JobRows(job=job_row(view), steps=tuple(step_rows(view)))
    later = msgspec.json.encode(rows).replace(b'"name":"upscale"', b'"name":"colorize"')
    with pytest.raises(msgspec.ValidationError, match="colorize"):
        msgspec.json.decode(later, type=JobRows)


def test_progress_is_the_weighted_average_of_both_steps() -> None:
    history = History(count=4).started("generate").wrote("generate", 0, 1, 2)
    assert job_progress(seen(history)).progress == 0.375
    assert job_progress(seen(history), {"generate": 0.2, "upscale": 0.8}).progress == 0.15
    assert [(stage.name, stage.weight) for stage in job_progress(seen(history)).stages] == [
        ("generate", 0.5),
        ("upscale", 0.5),
    ]


def test_a_job_of_no_images_has_no_progress() -> None:
    """Nobody can ask for one; a view is made of it all the same."""
    assert job_progress(seen(History(count=0))).progress == 0.0


def test_progress_items_are_those_of_the_last_step() -> None:
    history = History(count=2).started("generate").wrote("generate", 0, 1).finished("generate")
    assert job_progress(seen(history)).items == []
    found = job_progress(seen(history.started("upscale").wrote("upscale", 1)), per_step=True)
    assert [(item.item_index, item.progress) for item in found.items] == [(1, 1.0)]
    assert found.per_step == {"generate": 1.0, "upscale": 0.5}


def test_progress_of_a_single_step_has_the_old_stages() -> None:
    found = job_progress(seen(History(scale=None, count=3).started("generate").wrote("generate", 1)))
    assert found.progress == 0.333333
    assert [(stage.name, stage.weight) for stage in found.stages] == [
        ("queued_to_start", 0.1),
        ("sampling", 0.8),
        ("finalize", 0.1),
    ]


@given(st.integers(min_value=1, max_value=100), st.floats(min_value=0, max_value=1))
def test_progress_rises_and_ends_at_exactly_one(count: int, weight: float) -> None:
    weights: Any = {"generate": weight, "upscale": 1 - weight}
    job: JobView | None = None
    last = 0.0
    for event in chained(min(count, 7)).events:
        job = evolve_view(job, event)
        now = job_progress(job, weights).progress
        assert now >= last
        last = now
    assert last == 1.0


def test_an_erased_job_has_neither_prompt_nor_metadata() -> None:
    """Given the row of before and the event, or a history whose text is gone, then the view is the same."""
    ended = chained().add(JobFinish(status="succeeded"), JobErased(erased=["prompt"]))
    gone = [replace(event, private=PersonalText()) for event in ended.events]
    assert seen(ended) == fold_events(gone)
    assert (seen(ended).params["prompt"], seen(ended).metadata) == (None, {})


def test_a_job_as_it_was_is_the_fold_of_its_first_events() -> None:
    """Given 500 histories, then at every version, and at every moment, the job is what its events up to there made."""
    rng = random.Random(11)
    for _ in range(500):
        events = [
            replace(event, ts=NOON + timedelta(seconds=10 * n)) for n, event in enumerate(histories.history(rng).events)
        ]
        job: JobView | None = None
        assert history_as_of(events, NOON - timedelta(seconds=1)) == []
        for n, event in enumerate(events, 1):
            job = evolve_view(job, event)
            assert fold_events(events[:n]) == job
            moment = event.ts + timedelta(seconds=rng.uniform(0, 9))
            assert fold_events(history_as_of(events, moment)) == job


def test_a_job_as_it_was_ends_before_the_first_event_of_later() -> None:
    """Given 500 histories by clocks that disagree, then the beginning is the longest of events by then."""
    rng = random.Random(12)
    for _ in range(500):
        events = [
            replace(event, ts=NOON + timedelta(seconds=rng.randint(0, 20))) for event in histories.history(rng).events
        ]
        moment = NOON + timedelta(seconds=rng.randint(0, 20))
        beginning = history_as_of(events, moment)
        assert beginning == events[: len(beginning)]
        assert all(event.ts <= moment for event in beginning)
        assert len(beginning) == len(events) or events[len(beginning)].ts > moment
