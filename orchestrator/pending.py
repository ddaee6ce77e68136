"""The command that a job is waiting for, by its history: the queues can be rebuilt from it. Pure."""

from orchestrator.state import JobState, StepState


def pending_step(state: JobState) -> StepState | None:
    """The step whose command must be in a queue, once the orchestrator has reacted to the whole history; or None.

    The command of a running step is in its queue, too: claimed by the runner, and visible again if that dies.
    """
    if state.finished is not None:
        return None
    for step in state.steps:
        if step.status == "running":
            return step
        if step.status == "queued":
            return None if state.cancel_pending else step
        if step.status != "succeeded":
            return None
    return None
