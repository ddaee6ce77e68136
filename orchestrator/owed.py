"""Which command a job's history says must be under way: what the queues can be rebuilt from. Pure."""

from orchestrator.state import JobState, StepState


def owed(state: JobState) -> StepState | None:
    """The step whose command some queue must hold, given all that has been reacted to; None if there's none.

    A running step's command is its runner's, and shows again if that dies; so it is owed, too.
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
