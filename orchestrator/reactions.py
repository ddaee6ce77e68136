"""What follows from an event: the whole table. Pure.

| event                                                              | reaction                        |
|--------------------------------------------------------------------|---------------------------------|
| job.created                                                        | run the first step              |
| step.finish succeeded, not last, no cancel pending                 | run the next step               |
| step.finish succeeded, last                                        | finish the job: succeeded       |
| step.finish failed                                                 | finish the job: failed          |
| step.finish cancelled, or succeeded, not last, with cancel pending | finish the job: cancelled       |
| job.cancel_requested, no step running                              | finish the job: cancelled       |
| job.cancel_requested, a step running                               | nothing: its runner finishes it |
| job.retry_requested                                                | run the step that it names      |
| job.released, to go on                                             | whatever is pending by then     |
"""

from uuid import UUID

import msgspec

from orchestrator.decisions import FinishJob
from orchestrator.events import CancelRequested, DomainEvent, JobCreated, JobReleased, RetryRequested, StepFinish
from orchestrator.state import JobState, pending_step


class RunStep(msgspec.Struct, frozen=True, kw_only=True):
    """Send the command that runs a step."""

    step_id: UUID


Reaction = RunStep | FinishJob

REACTION_CODES = {body.code for body in (JobCreated, StepFinish, CancelRequested, RetryRequested, JobReleased)}
"""The codes that can have a reaction."""


def react(state: JobState, body: DomainEvent) -> Reaction | None:
    """What follows from an event; `state` is the job's after it."""
    match body:
        case JobCreated():
            return RunStep(step_id=state.steps[0].step_id)
        case StepFinish():
            return _react_to_step_finish(state, body)
        case CancelRequested():
            return FinishJob(status="cancelled") if state.running_step is None else None
        case RetryRequested():
            return RunStep(step_id=body.step_id)
        case JobReleased(resume=True):
            return _react_to_release(state)
        case _:
            return None


def _react_to_release(state: JobState) -> Reaction | None:
    """What the job waits for, since nothing was reacted to while it was set aside."""
    if state.outcome is not None:
        return None
    if state.erased:
        return FinishJob(status="failed")  # its prompt is gone
    step = pending_step(state)
    if step is not None:
        return RunStep(step_id=step.step_id)
    if all(step.status == "succeeded" for step in state.steps):
        return FinishJob(status="succeeded")
    failed = any(step.status == "failed" for step in state.steps)
    return FinishJob(status="failed" if failed else "cancelled")


def _react_to_step_finish(state: JobState, body: StepFinish) -> Reaction:
    if body.status != "succeeded":
        return FinishJob(status=body.status)
    following = state.step_after(state.step(body.step_id))
    if following is None:
        return FinishJob(status="succeeded")
    if state.cancel_pending:
        return FinishJob(status="cancelled")
    return RunStep(step_id=following.step_id)
