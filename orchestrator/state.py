"""A job as its history tells it: what decisions are made on. Pure."""

from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec
from msgspec.structs import replace

from orchestrator.events import (
    ArtifactRewritten,
    ArtifactWritten,
    CancelRequested,
    DecodedEvent,
    JobCreated,
    JobErased,
    JobFinish,
    Meta,
    Outcome,
    PersonalText,
    RetryRequested,
    Status,
    StepError,
    StepFinish,
    StepName,
    StepRetry,
    StepStart,
)
from orchestrator.parameters import GenerateParams


class StepState(msgspec.Struct, frozen=True, kw_only=True):
    """One step. `attempts_without_progress`: consecutive ones that wrote no new artifact, the current one included.

    `lost`: items that were written, and are to be made again since their images are gone.
    """

    step_id: UUID
    name: StepName
    status: Status = "queued"
    attempt: int = 0
    attempts_without_progress: int = 0
    first_started_at: datetime | None = None
    artifacts: dict[int, ArtifactWritten] = {}
    lost: frozenset[int] = frozenset()

    @property
    def identity(self) -> dict[str, Any]:
        """The fields by which an event names the step and its current attempt."""
        return {"step_id": self.step_id, "step_name": self.name, "attempt": self.attempt}

    def has_item(self, item_index: int) -> bool:
        """Is an item written, and still there as far as the log tells?"""
        return item_index in self.artifacts and item_index not in self.lost


class JobState(msgspec.Struct, frozen=True, kw_only=True):
    """One job. `outcome`: how it ended, None while it's open; `error`: why a step last failed for good.

    `parameters`: what was asked of each step, by its name. `erased`: its personal text was taken away.
    """

    job_id: UUID
    tenant: str
    version: int
    generate: GenerateParams
    parameters: dict[str, Any]
    private: PersonalText
    steps: tuple[StepState, ...]
    cancel_pending: bool = False
    outcome: Outcome | None = None
    error: StepError | None = None
    cause: Meta = Meta()
    traceparent: str | None = None
    erased: bool = False

    def step(self, step_id: UUID) -> StepState:
        """One of the job's steps; KeyError if it is none of them."""
        for step in self.steps:
            if step.step_id == step_id:
                return step
        raise KeyError(step_id)

    def step_before(self, step: StepState) -> StepState | None:
        """The step that it follows, None for the first. The step may be as an earlier version of the job had it."""
        index = self._step_index(step)
        return self.steps[index - 1] if index > 0 else None

    def step_after(self, step: StepState) -> StepState | None:
        """The step that follows, None after the last. The step may be as an earlier version of the job had it."""
        index = self._step_index(step) + 1
        return self.steps[index] if index < len(self.steps) else None

    def _step_index(self, step: StepState) -> int:
        return [other.step_id for other in self.steps].index(step.step_id)

    @property
    def running_step(self) -> StepState | None:
        """The step that some runner has taken, if any."""
        return next((step for step in self.steps if step.status == "running"), None)


class BrokenHistory(Exception):
    """A history that no run of the service can have written."""


def apply(state: JobState | None, event: DecodedEvent) -> JobState:  # noqa: C901, PLR0911, PLR0912  # one case an event
    """The state after one more event."""
    expected = 1 if state is None else state.version + 1
    if event.version != expected:
        raise BrokenHistory(f"job {event.stream_id}: version {expected} is missing, found {event.version}")
    if isinstance(event.body, JobCreated):
        return _apply_created(event, event.body)
    if state is None:
        raise BrokenHistory(f"job {event.stream_id}: the history does not begin with job.created")
    state = replace(state, version=event.version)
    match event.body:
        case StepStart() as body:
            return _apply_started(state, body, event.ts)
        case ArtifactWritten() as body:
            return _apply_written(state, body)
        case ArtifactRewritten() as body:
            return _apply_rewritten(state, body)
        case StepRetry() as body:
            step = state.step(body.step_id)
            attempts_without_progress = {
                "failure": step.attempts_without_progress,
                "hand_back": 0,
                "not_started": step.attempts_without_progress + 1,
            }[body.reason]
            return _replace_step(
                state,
                replace(
                    step, status="queued", attempt=body.attempt, attempts_without_progress=attempts_without_progress
                ),
            )
        case StepFinish() as body:
            return _replace_step(state, replace(state.step(body.step_id), status=body.status, attempt=body.attempt))
        case StepError() as body:
            return replace(state, error=body)
        case CancelRequested():
            return replace(state, cancel_pending=True, cause=event.meta, traceparent=_traceparent(event))
        case RetryRequested() as body:
            opened = replace(state, outcome=None, error=None, cancel_pending=False)
            return _apply_retry_requested(replace(opened, cause=event.meta, traceparent=_traceparent(event)), body)
        case JobFinish() as body:
            return replace(state, outcome=body.status)
        case JobErased():
            return replace(state, erased=True, private=PersonalText(), traceparent=None)
        case _:
            return state


def _apply_created(event: DecodedEvent, body: JobCreated) -> JobState:
    return JobState(
        job_id=event.stream_id,
        tenant=event.tenant,
        version=event.version,
        generate=body.generate,
        parameters=body.parameters(),
        private=event.private,
        steps=tuple(StepState(step_id=step.step_id, name=step.name) for step in body.steps),
        cause=event.meta,
        traceparent=_traceparent(event),
    )


def _traceparent(event: DecodedEvent) -> str | None:
    return event.private.traceparent or event.meta.traceparent


def _apply_started(state: JobState, body: StepStart, ts: datetime) -> JobState:
    step = state.step(body.step_id)
    return _replace_step(
        state,
        replace(
            step,
            status="running",
            attempt=body.attempt,
            attempts_without_progress=step.attempts_without_progress + 1,
            first_started_at=step.first_started_at or ts,
        ),
    )


def _apply_written(state: JobState, body: ArtifactWritten) -> JobState:
    step = state.step(body.step_id)
    artifacts = {**step.artifacts, body.item_index: body}
    return _replace_step(state, replace(step, artifacts=artifacts, attempts_without_progress=0))


def _apply_rewritten(state: JobState, body: ArtifactRewritten) -> JobState:
    step = state.step(body.step_id)
    before = step.artifacts[body.item_index]
    made_again = body.attempt != before.attempt
    artifact = replace(
        before,
        attempt=body.attempt,
        bytes=body.bytes,
        sha256=body.sha256,
        rendering=body.rendering if made_again else before.rendering,
    )
    artifacts = {**step.artifacts, body.item_index: artifact}
    attempts_without_progress = 0 if made_again else step.attempts_without_progress
    return _replace_step(
        state,
        replace(
            step,
            artifacts=artifacts,
            lost=step.lost - {body.item_index},
            attempts_without_progress=attempts_without_progress,
        ),
    )


def _apply_retry_requested(state: JobState, body: RetryRequested) -> JobState:
    """The named step is queued again; one after it that failed waits for it, as before its first turn."""
    step = state.step(body.step_id)
    state = _replace_step(
        state, replace(step, status="queued", attempts_without_progress=0, lost=step.lost | set(body.items))
    )
    for later in state.steps[state.steps.index(state.step(body.step_id)) + 1 :]:
        if later.status == "failed":
            state = _replace_step(state, replace(later, status="queued", attempts_without_progress=0))
    return state


def _replace_step(state: JobState, step: StepState) -> JobState:
    steps = tuple(step if other.step_id == step.step_id else other for other in state.steps)
    return replace(state, steps=steps)


def pending_step(state: JobState) -> StepState | None:
    """The step whose command must be in a queue, once the orchestrator has reacted to the whole history; or None.

    The command of a running step is in its queue, too: claimed by the runner, and visible again if that dies.
    """
    if state.outcome is not None:
        return None
    for step in state.steps:
        if step.status == "running":
            return step
        if step.status == "queued":
            return None if state.cancel_pending else step
        if step.status != "succeeded":
            return None
    return None
