"""The pure core, given/when/then: which events a command leads to."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.decisions import (
    CommandRejected,
    FailAttempt,
    FailStart,
    FinishJob,
    HandBackStep,
    RecordItems,
    RequestCancel,
    RequestErasure,
    RequestRetry,
    StaleAttempt,
    StartStep,
    decide,
    may_start,
)
from orchestrator.events import (
    ArtifactWritten,
    CancelRequested,
    DomainEvent,
    JobErased,
    JobFinish,
    RetryRequested,
    StepName,
    StepRetry,
)
from tests.kit import History


def codes(bodies: list[DomainEvent]) -> list[str]:
    """The codes, with the status of those that end something."""
    return [f"{body.code} {body.status}" if hasattr(body, "status") else body.code for body in bodies]


def start(history: History, name: StepName = "generate", max_attempts: int = 3) -> list[str]:
    """What a runner's start of a step leads to."""
    command = StartStep(
        step_id=history.step_id(name),
        claimed_attempt=history.state.step(history.step_id(name)).attempt,
        runner="r",
        engine="e",
        source="s",
        model_id=None,
        max_attempts=max_attempts,
    )
    return codes(decide(history.state, command))


def fail(history: History, name: StepName = "generate", attempt: int = 1, **more: Any) -> list[str]:
    """What an attempt's failure leads to."""
    command = FailAttempt(
        step_id=history.step_id(name),
        attempt=attempt,
        error_code="infra_unavailable",
        error_message="away",
        item_index=0,
        retryable=more.pop("retryable", True),
        delay_s=1.0,
        max_attempts=3,
    )
    return codes(decide(history.state, command))


def fail_start(history: History, *, after: int = 0, retryable: bool = True) -> list[DomainEvent]:
    """What a failure before the start of generate leads to."""
    command = FailStart(
        step_id=history.step_id("generate"),
        claimed_attempt=after,
        error_code="internal",
        error_message="the registry is broken",
        retryable=retryable,
        delay_s=1.0,
        max_attempts=3,
    )
    return decide(history.state, command)


def record(history: History, *indexes: int, name: StepName = "generate", attempt: int = 1) -> list[str]:
    """What storing items leads to."""
    items = [history.item(name, index, attempt) for index in indexes]
    return codes(decide(history.state, RecordItems(step_id=history.step_id(name), attempt=attempt, items=items)))


def retried(history: History, attempt: int, reason: Any = "failure") -> History:
    """An attempt at generate ends without finishing it."""
    body = StepRetry(
        step_id=history.step_id("generate"),
        step_name="generate",
        attempt=attempt,
        reason=reason,
        error_code=None,
        error_message=None,
        delay_s=0.0,
    )
    return history.add(body)


def test_a_queued_step_starts() -> None:
    assert start(History()) == ["step.start", "model.selected"]


def test_an_upscale_starts_without_choosing_a_model_and_only_after_generate() -> None:
    assert start(History(), "upscale") == []
    assert start(History().started("generate").wrote("generate", 0).finished("generate"), "upscale") == ["step.start"]


def test_a_redelivered_step_starts_with_the_next_attempt() -> None:
    history = History().started("generate")
    command = StartStep(
        step_id=history.step_id("generate"),
        claimed_attempt=1,
        runner="b",
        engine="e",
        source="s",
        model_id=None,
        max_attempts=3,
    )
    first = decide(history.state, command)[0]
    assert first.attempt == 2  # type: ignore[attr-defined]


@pytest.mark.parametrize("status", ["succeeded", "failed", "cancelled"])
def test_a_finished_step_does_not_start_again(status: str) -> None:
    assert start(History().started("generate").finished("generate", status)) == []


def test_a_step_with_a_cancel_pending_is_cancelled_instead_of_started() -> None:
    assert start(History().add(CancelRequested())) == ["step.finish cancelled"]


def test_three_barren_starts_end_a_poisonous_step() -> None:
    history = History().started("generate", 1).started("generate", 2).started("generate", 3)
    assert start(history) == ["error", "step.finish failed"]


def test_an_artifact_starts_the_count_of_barren_attempts_anew() -> None:
    history = History(count=9).started("generate", 1).started("generate", 2).wrote("generate", 0, attempt=2)
    assert start(history.started("generate", 3).started("generate", 4)) == ["step.start", "model.selected"]


def test_hand_backs_do_not_count_as_barren() -> None:
    """Three deploys must not kill a long step."""
    history = History(count=9)
    for attempt in range(1, 8):
        retried(history.started("generate", attempt), attempt, "hand_back")
    assert start(history) == ["step.start", "model.selected"]


def test_a_step_that_cannot_start_is_tried_as_often_as_one_that_fails() -> None:
    """Given failures before the start alone, then each is an attempt, numbered and counted; the third is the last."""
    history = History()
    for attempt in (1, 2):
        (retry,) = fail_start(history, after=attempt - 1)
        assert isinstance(retry, StepRetry)
        assert (retry.attempt, retry.reason, retry.error_message) == (attempt, "not_started", "the registry is broken")
        history.add(retry)
        assert history.state.step(history.step_id("generate")).attempt == attempt
    last = fail_start(history, after=2)
    assert codes(last) == ["error", "step.finish failed"]
    history.add(*last).add(JobFinish(status="failed"))
    history.add(RetryRequested(step_id=history.step_id("generate"), step_name="generate"))
    assert codes(fail_start(history, after=3)) == ["step.retry"]


def test_failed_starts_and_failed_attempts_count_together() -> None:
    history = retried(History().started("generate", 1), 1)
    history.add(*fail_start(history, after=1))
    assert fail(history.started("generate", 3), attempt=3) == ["error", "step.finish failed"]


def test_a_failed_start_is_decided_like_a_start() -> None:
    """Not of a step that isn't pending, nor after another's start; a cancel wins; a final error is the last."""
    assert fail_start(History().started("generate").finished("generate"), after=1) == []
    with pytest.raises(StaleAttempt):
        fail_start(History().started("generate"))
    assert codes(fail_start(History().add(CancelRequested()))) == ["step.finish cancelled"]
    assert codes(fail_start(History(), retryable=False)) == ["error", "step.finish failed"]
    fenced = History().started("generate")
    fenced.add(*fail_start(fenced, after=1))
    with pytest.raises(StaleAttempt):
        record(fenced, 0)


def test_items_are_recorded_as_they_come_and_the_last_finishes_the_step() -> None:
    history = History(count=3).started("generate")
    assert record(history, 0) == ["artifact.written"]
    assert record(history.wrote("generate", 0), 1, 2) == ["artifact.written"] * 2 + ["step.finish succeeded"]


def test_an_item_that_was_recorded_already_is_not_recorded_twice() -> None:
    history = History(count=3).started("generate").wrote("generate", 0)
    assert record(history, 0, 1) == ["artifact.written"]


def test_a_cancel_stops_at_the_next_item_but_completion_wins() -> None:
    history = History(count=2).started("generate").add(CancelRequested())
    assert record(history, 0) == ["artifact.written", "step.finish cancelled"]
    assert record(history, 0, 1) == ["artifact.written", "artifact.written", "step.finish succeeded"]


def test_a_retryable_failure_is_tried_again_until_the_third_barren_attempt() -> None:
    history = History().started("generate", 1)
    assert fail(history, attempt=1) == ["step.retry"]
    retried(history, 1).started("generate", 2)
    assert fail(history, attempt=2) == ["step.retry"]
    retried(history, 2).started("generate", 3)
    assert fail(history, attempt=3) == ["error", "step.finish failed"]


def test_a_final_failure_fails_at_once() -> None:
    assert fail(History().started("generate"), retryable=False) == ["error", "step.finish failed"]


def test_a_failure_with_a_cancel_pending_cancels() -> None:
    assert fail(History().started("generate").add(CancelRequested())) == ["step.finish cancelled"]


def test_an_older_attempt_is_rejected_whatever_it_wants() -> None:
    """The fence: an expected version alone would let a woken zombie succeed after folding again."""
    history = History().started("generate", 1).started("generate", 2)
    with pytest.raises(StaleAttempt):
        record(history, 0, attempt=1)
    with pytest.raises(StaleAttempt):
        fail(history, attempt=1)
    with pytest.raises(StaleAttempt):
        decide(history.state, HandBackStep(step_id=history.step_id("generate"), attempt=1))


@pytest.mark.parametrize("status", ["succeeded", "failed", "cancelled"])
def test_a_finished_step_rejects_its_own_attempt(status: str) -> None:
    with pytest.raises(StaleAttempt):
        record(History().started("generate").finished("generate", status), 0)


def test_a_start_is_rejected_if_another_began_since_the_claim() -> None:
    """A runner frozen between claim and start must not take the step from whoever holds the lease by now."""
    history = History().started("generate")
    command = StartStep(
        step_id=history.step_id("generate"),
        claimed_attempt=0,
        runner="z",
        engine="e",
        source="s",
        model_id=None,
        max_attempts=3,
    )
    with pytest.raises(StaleAttempt, match="began after the claim"):
        decide(history.state, command)


def test_a_job_finishes_once_and_not_while_a_step_runs() -> None:
    finish = FinishJob(status="cancelled")
    assert codes(decide(History().state, finish)) == ["job.finish cancelled"]
    assert decide(History().started("generate").state, finish) == []
    assert decide(History().add(JobFinish(status="failed")).state, finish) == []


def test_a_requested_retry_opens_the_job_and_counts_anew() -> None:
    history = History(count=2).started("generate", 1).wrote("generate", 0).started("generate", 2)
    history.started("generate", 3).finished("generate", "failed", 3).add(JobFinish(status="failed"))
    history.add(RetryRequested(step_id=history.step_id("generate"), step_name="generate"))
    assert history.state.outcome is None
    assert start(history) == ["step.start", "model.selected"]
    assert list(history.state.step(history.step_id("generate")).artifacts) == [0]


def test_a_cancelled_job_leaves_no_started_step_open() -> None:
    """Given a step that waits to be tried again, then it ends with its job; one that never started does not."""
    history = History().started("generate")
    given: dict[str, Any] = {"reason": "hand_back", "error_code": None, "error_message": None, "delay_s": 0}
    retried = StepRetry(step_id=history.step_id("generate"), step_name="generate", attempt=1, **given)
    found = codes(decide(history.add(retried, CancelRequested()).state, FinishJob(status="cancelled")))
    assert found == ["step.finish cancelled", "job.finish cancelled"]


def test_a_cancel_is_recorded_once_and_only_while_the_job_goes_on() -> None:
    ask = RequestCancel()
    assert codes(decide(History().started("generate").state, ask)) == ["job.cancel_requested"]
    assert decide(History().add(CancelRequested()).state, ask) == []
    assert decide(History().add(CancelRequested(), JobFinish(status="cancelled")).state, ask) == []
    for outcome in ("succeeded", "failed"):
        with pytest.raises(CommandRejected, match=outcome):
            decide(History().add(CancelRequested(), JobFinish(status=outcome)).state, ask)


def test_a_retry_names_the_failed_step_and_needs_a_failed_job() -> None:
    failed = History().started("generate").wrote("generate", 0).finished("generate").started("upscale")
    failed.finished("upscale", "failed").add(JobFinish(status="failed"))
    (found,) = decide(failed.state, RequestRetry())
    assert isinstance(found, RetryRequested)
    assert (found.step_id, found.step_name) == (failed.step_id("upscale"), "upscale")
    for history in (failed.add(found), History(), History().add(JobFinish(status="cancelled"))):
        with pytest.raises(CommandRejected, match="Only a failed job"):
            decide(history.state, RequestRetry())


def lost(*, count: int = 3, items: tuple[int, ...] = (0, 2)) -> History:
    """A job whose upscale failed since some of what generate wrote is gone."""
    history = History(count=count).started("generate").wrote("generate", *range(count)).finished("generate")
    history.started("upscale")
    command = FailAttempt(
        step_id=history.step_id("upscale"),
        attempt=1,
        error_code="provider_error",
        error_message="gone",
        item_index=0,
        retryable=False,
        delay_s=0.0,
        max_attempts=3,
        lost=items,
    )
    return history.add(*decide(history.state, command)).add(JobFinish(status="failed"))


def test_a_retry_of_a_job_whose_images_are_gone_names_the_step_that_makes_them() -> None:
    """And the items; then both steps are queued, and the upscale waits for its turn."""
    history = lost()
    (found,) = decide(history.state, RequestRetry())
    assert found == RetryRequested(step_id=history.step_id("generate"), step_name="generate", items=[0, 2])
    history.add(found)
    assert [step.status for step in history.state.steps] == ["queued", "queued"]
    assert [history.state.steps[0].has_item(index) for index in range(3)] == [False, True, False]
    assert start(history, "upscale") == []
    history.started("generate", 2)
    assert record(history, 0, 1, attempt=2) == ["artifact.rewritten"]
    assert record(history, 0, 2, attempt=2) == ["artifact.rewritten"] * 2 + ["step.finish succeeded"]
    bodies = decide(
        history.state,
        RecordItems(
            step_id=history.step_id("generate"),
            attempt=2,
            items=[history.item("generate", index, 2) for index in (0, 2)],
        ),
    )
    before = {index: one.artifact_id for index, one in history.state.steps[0].artifacts.items()}
    history.add(*bodies)
    assert {index: one.artifact_id for index, one in history.state.steps[0].artifacts.items()} == before
    assert [one.attempt for one in history.state.steps[0].artifacts.values()] == [2, 1, 2]
    assert start(history, "upscale") == ["step.start"]


def test_items_that_are_made_again_count_like_new_ones() -> None:
    """Given a generate that fails again and again, then each image that it restores starts the count anew."""
    history = lost()
    history.add(*decide(history.state, RequestRetry())).started("generate", 2).started("generate", 3)
    assert history.state.steps[0].attempts_without_progress == 2
    step_id = history.step_id("generate")
    history.add(
        *decide(
            history.state,
            RecordItems(step_id=step_id, attempt=3, items=[history.item("generate", 0, 3)]),
        )
    )
    assert history.state.steps[0].attempts_without_progress == 0
    history.finished("generate", "failed", 3).add(JobFinish(status="failed"))
    (again,) = decide(history.state, RequestRetry())
    history.add(again)
    assert history.state.steps[0].lost == {2}


def test_the_step_that_waits_for_lost_images_outlives_a_failure_to_make_them() -> None:
    """Given a generate that fails when it should restore images, and a retry of it, then the upscale's turn comes."""
    history = lost()
    history.add(*decide(history.state, RequestRetry())).started("generate", 2).finished("generate", "failed", 2)
    history.add(*decide(history.state, FinishJob(status="failed")))
    assert [step.status for step in history.state.steps] == ["failed", "queued"]
    history.add(*decide(history.state, RequestRetry())).started("generate", 3)
    items = [history.item("generate", index, 3) for index in (0, 2)]
    step_id = history.step_id("generate")
    history.add(*decide(history.state, RecordItems(step_id=step_id, attempt=3, items=items)))
    assert start(history, "upscale") == ["step.start"]


def test_a_job_whose_text_was_erased_is_not_made_again() -> None:
    history = lost()
    history.add(JobErased(erased=["prompt"]))
    with pytest.raises(CommandRejected, match="was erased"):
        decide(history.state, RequestRetry())


def test_text_is_erased_once_and_only_of_a_job_that_has_ended() -> None:
    ask = RequestErasure()
    for history in (History(), History().started("generate").add(CancelRequested())):
        with pytest.raises(CommandRejected, match="cancel it before"):
            decide(history.state, ask)
    ended = History().started("generate").finished("generate", "failed").add(JobFinish(status="failed"))
    (found,) = decide(ended.state, ask)
    assert found == JobErased(erased=["prompt"])
    assert decide(ended.add(found).state, ask) == []
    with pytest.raises(CommandRejected, match="was erased"):
        decide(ended.state, RequestRetry())


@given(st.lists(st.sampled_from(["start", "fail_start", "item0", "item1", "fail", "hand_back", "cancel"]), max_size=25))
def test_whatever_happens_a_repeated_command_yields_nothing_new(steps: list[str]) -> None:
    """For any order of commands: no item is written twice, a step finishes once, nothing follows a finish."""
    history = History(scale=None, count=2)
    step_id = history.step_id("generate")
    for step in steps:
        attempt = history.state.step(step_id).attempt
        commands: dict[str, Any] = {
            "start": StartStep(
                step_id=step_id,
                claimed_attempt=attempt,
                runner="r",
                engine="e",
                source="s",
                model_id=None,
                max_attempts=3,
            ),
            "fail_start": FailStart(
                step_id=step_id,
                claimed_attempt=attempt,
                error_code="internal",
                error_message="m",
                retryable=True,
                delay_s=0.0,
                max_attempts=3,
            ),
            "item0": RecordItems(step_id=step_id, attempt=attempt, items=[history.item("generate", 0, attempt)]),
            "item1": RecordItems(step_id=step_id, attempt=attempt, items=[history.item("generate", 1, attempt)]),
            "fail": FailAttempt(
                step_id=step_id,
                attempt=attempt,
                error_code="oom",
                error_message="m",
                item_index=None,
                retryable=True,
                delay_s=0.0,
                max_attempts=3,
            ),
            "hand_back": HandBackStep(step_id=step_id, attempt=attempt),
        }
        if step == "cancel":
            if not history.state.cancel_pending:
                history.add(CancelRequested())
            continue
        try:
            history.add(*decide(history.state, commands[step]))
        except StaleAttempt:
            assert not (may_start(history.state, step_id) and history.state.running_step)
    written = [one.body.item_index for one in history.events if isinstance(one.body, ArtifactWritten)]
    assert len(written) == len(set(written))
    seen = [one.body.code for one in history.events if one.body is not None and one.body.code != "job.cancel_requested"]
    assert seen.count("step.finish") <= 1
    assert "step.finish" not in seen[:-1]
