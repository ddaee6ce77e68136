"""The reaction table, row by row."""

from orchestrator.decisions import FinishJob
from orchestrator.events import CancelRequested, JobErased, JobFinish, JobReleased, RetryRequested, StepRetry
from orchestrator.reactions import REACTION_CODES, Reaction, RunStep, react
from tests.kit import History


def reaction(history: History) -> Reaction | None:
    """What follows from the last event of a history."""
    body = history.events[-1].body
    assert body is not None
    return react(history.state, body)


def generated(history: History) -> History:
    """Generate succeeds."""
    return history.started("generate").wrote("generate", 0).finished("generate")


def test_a_new_job_runs_its_first_step() -> None:
    history = History()
    assert reaction(history) == RunStep(step_id=history.step_id("generate"))


def test_a_succeeded_step_runs_the_next() -> None:
    history = generated(History())
    assert reaction(history) == RunStep(step_id=history.step_id("upscale"))


def test_the_last_step_finishes_the_job() -> None:
    assert reaction(generated(History(scale=None))) == FinishJob(status="succeeded")
    chained = generated(History()).started("upscale").wrote("upscale", 0).finished("upscale")
    assert reaction(chained) == FinishJob(status="succeeded")


def test_completion_wins_over_a_pending_cancel() -> None:
    history = generated(History()).started("upscale").add(CancelRequested())
    assert reaction(history.wrote("upscale", 0).finished("upscale")) == FinishJob(status="succeeded")


def test_a_failed_step_fails_the_job() -> None:
    assert reaction(History().started("generate").finished("generate", "failed")) == FinishJob(status="failed")
    history = generated(History()).started("upscale").finished("upscale", "failed")
    assert reaction(history) == FinishJob(status="failed")


def test_a_cancelled_step_cancels_the_job() -> None:
    history = History().started("generate").add(CancelRequested()).finished("generate", "cancelled")
    assert reaction(history) == FinishJob(status="cancelled")


def test_a_pending_cancel_keeps_the_next_step_from_running() -> None:
    history = History().started("generate").add(CancelRequested()).wrote("generate", 0).finished("generate")
    assert reaction(history) == FinishJob(status="cancelled")


def test_a_cancel_of_a_waiting_job_finishes_it() -> None:
    assert reaction(History().add(CancelRequested())) == FinishJob(status="cancelled")
    history = History().started("generate")
    waiting = StepRetry(
        step_id=history.step_id("generate"),
        step_name="generate",
        attempt=1,
        reason="failure",
        error_code="oom",
        error_message="m",
        delay_s=9.0,
    )
    assert reaction(history.add(waiting)) is None
    assert reaction(history.add(CancelRequested())) == FinishJob(status="cancelled")


def test_a_cancel_of_a_running_step_is_its_runners_business() -> None:
    assert reaction(History().started("generate").add(CancelRequested())) is None


def test_a_requested_retry_runs_the_failed_step_again() -> None:
    history = History().started("generate").finished("generate", "failed").add(JobFinish(status="failed"))
    step_id = history.step_id("generate")
    history.add(RetryRequested(step_id=step_id, step_name="generate"))
    assert reaction(history) == RunStep(step_id=step_id)


def test_every_other_event_has_no_reaction() -> None:
    history = History(count=2).started("generate").wrote("generate", 0)
    for decoded in history.events[1:]:
        assert decoded.body is not None
        assert decoded.body.code not in REACTION_CODES
        assert react(history.state, decoded.body) is None


def released(history: History) -> Reaction | None:
    """What follows when the job is let go on."""
    return reaction(history.add(JobReleased(resume=True)))


def test_a_released_job_gets_what_it_is_owed() -> None:
    """A step that waits or whose runner stopped runs, and what had ended is finished; completion wins over a cancel."""
    history = History().started("generate")
    assert released(history) == RunStep(step_id=history.step_id("generate"))
    history = generated(History())
    assert released(history) == RunStep(step_id=history.step_id("upscale"))
    failed = History().started("generate").finished("generate", "failed")
    assert released(failed) == FinishJob(status="failed")
    done = generated(History()).started("upscale").add(CancelRequested()).wrote("upscale", 0).finished("upscale")
    assert released(done) == FinishJob(status="succeeded")
    assert released(History().add(CancelRequested())) == FinishJob(status="cancelled")
    assert released(done.add(JobFinish(status="succeeded"))) is None


def test_a_released_job_without_its_prompt_fails() -> None:
    assert released(History().add(JobErased(erased=["prompt"]))) == FinishJob(status="failed")


def test_a_job_that_is_left_failed_gets_nothing() -> None:
    assert reaction(History().add(JobReleased(resume=False))) is None
