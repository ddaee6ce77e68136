"""Which events a command leads to, given a job's state. Pure: time, ids and seeds come with the command.

A command that was carried out already leads to no event; one that the state forbids raises `CommandRejected`.
"""

from collections.abc import Sequence
from uuid import UUID

import msgspec
from msgspec.structs import replace

from orchestrator.copying import copy_fields
from orchestrator.events import (
    PRIVATE_FIELDS,
    ArtifactRewritten,
    ArtifactWritten,
    CancelRequested,
    DomainEvent,
    EngineLost,
    ErrorCode,
    JobErased,
    JobFinish,
    ModelSelected,
    Outcome,
    RetryReason,
    RetryRequested,
    SamplingBatch,
    SamplingOom,
    SamplingTick,
    StepError,
    StepFinish,
    StepRetry,
    StepStart,
)
from orchestrator.state import JobState, StepState

ProgressEvent = SamplingTick | SamplingBatch | SamplingOom | EngineLost


class CommandRejected(Exception):
    """The job's state forbids the command."""


class StaleAttempt(CommandRejected):
    """The step has a newer attempt, or needs none: whoever asks has lost its lease and must stop."""


class StartStep(msgspec.Struct, frozen=True, kw_only=True):
    """A runner takes a step.

    claimed_attempt: the step's when its command was claimed; a newer one belongs to whoever holds the lease by now.
    max_attempts: consecutive attempts without a new artifact before it fails for good.
    """

    step_id: UUID
    claimed_attempt: int
    runner: str
    engine: str
    source: str
    model_id: UUID | None
    model_sha256: str | None = None
    max_attempts: int


class FailStart(msgspec.Struct, frozen=True, kw_only=True):
    """A runner that took a step could not start it. claimed_attempt, max_attempts: as in `StartStep`.

    delay_s: before the next attempt, if there is to be one.
    """

    step_id: UUID
    claimed_attempt: int
    error_code: ErrorCode
    error_message: str
    retryable: bool
    delay_s: float
    max_attempts: int


class RecordItems(msgspec.Struct, frozen=True, kw_only=True):
    """An attempt has put items into the store. The step finishes with its last item."""

    step_id: UUID
    attempt: int
    items: Sequence[ArtifactWritten]
    progress_events: Sequence[ProgressEvent] = ()


class RecordProgress(msgspec.Struct, frozen=True, kw_only=True):
    """An attempt tells what its engine does. It changes nothing, but a cancel that was asked for takes effect."""

    step_id: UUID
    attempt: int
    progress_events: Sequence[ProgressEvent]


class FailAttempt(msgspec.Struct, frozen=True, kw_only=True):
    """An attempt failed. delay_s: before the next one, if there is to be one.

    lost: items of the step before whose images are gone from the store, or changed.
    """

    step_id: UUID
    attempt: int
    error_code: ErrorCode
    error_message: str
    item_index: int | None
    retryable: bool
    delay_s: float
    max_attempts: int
    lost: Sequence[int] = ()


class HandBackStep(msgspec.Struct, frozen=True, kw_only=True):
    """A runner stops, and gives its step to the others."""

    step_id: UUID
    attempt: int


class FinishJob(msgspec.Struct, frozen=True, kw_only=True):
    """The orchestrator closes the job."""

    status: Outcome


class RequestCancel(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody asks for the job to end early."""


class RequestRetry(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody asks for a failed job to go on: at its failed step, or where the images that this needs are made."""


class RequestErasure(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody asks for a job's personal text to be taken away. rewritten: the files that will lose theirs."""

    rewritten: Sequence[ArtifactRewritten] = ()


JobRequest = RequestCancel | RequestRetry | RequestErasure
JobCommand = StartStep | FailStart | RecordItems | RecordProgress | FailAttempt | HandBackStep | FinishJob | JobRequest


def decide(state: JobState, command: JobCommand) -> list[DomainEvent]:  # noqa: C901, PLR0911  # one case a command
    """The events that the command leads to, none if there's nothing to do."""
    match command:
        case StartStep():
            return _start_step(state, command)
        case FailStart():
            return _fail_start(state, command)
        case RecordItems():
            return _record_items(state, command)
        case RecordProgress():
            step = _expect_current(state, command.step_id, command.attempt)
            return [_cancelled_finish_event(step)] if state.cancel_pending else list(command.progress_events)
        case FailAttempt():
            return _fail_attempt(state, command)
        case HandBackStep():
            step = _expect_current(state, command.step_id, command.attempt)
            return [
                _cancelled_finish_event(step)
                if state.cancel_pending
                else _retry_event(step, "hand_back", None, None, 0.0)
            ]
        case FinishJob():
            return _finish_job(state, command)
        case RequestCancel():
            return _request_cancel(state)
        case RequestRetry():
            return _request_retry(state)
        case RequestErasure():
            return _request_erasure(state, command)


def may_start(state: JobState, step_id: UUID) -> bool:
    """Whether the step is pending: not finished, in an open job, with its predecessors done."""
    step = state.step(step_id)
    if state.outcome is not None or step.status not in {"queued", "running"}:
        return False
    before = state.steps[: state.steps.index(step)]
    return all(earlier.status == "succeeded" for earlier in before)


def _start_step(state: JobState, command: StartStep) -> list[DomainEvent]:
    if not may_start(state, command.step_id):
        return []
    step = _expect_unstarted(state, command.step_id, command.claimed_attempt)
    if state.cancel_pending:
        return [_cancelled_finish_event(step)]
    if step.attempts_without_progress >= command.max_attempts:
        tried = step.attempts_without_progress
        why = f"step {step.name} was tried {tried} times in a row without writing an image; its runner died"
        return _fail_step(step, "internal", why, None)
    started = replace(step, attempt=step.attempt + 1)
    return [
        StepStart(**started.identity, runner=command.runner),
        *(
            [
                ModelSelected(
                    **started.identity,
                    model_id=command.model_id,
                    engine=command.engine,
                    source=command.source,
                    model_sha256=command.model_sha256,
                )
            ]
            if state.step_before(step) is None or command.model_id is not None
            else []
        ),
    ]


def _fail_start(state: JobState, command: FailStart) -> list[DomainEvent]:
    """As a failed attempt of its own: it is numbered and counted as one that started, and fences as one."""
    if not may_start(state, command.step_id):
        return []
    step = _expect_unstarted(state, command.step_id, command.claimed_attempt)
    if state.cancel_pending:
        return [_cancelled_finish_event(step)]
    failed = replace(step, attempt=step.attempt + 1, attempts_without_progress=step.attempts_without_progress + 1)
    if command.retryable and failed.attempts_without_progress < command.max_attempts:
        return [_retry_event(failed, "not_started", command.error_code, command.error_message, command.delay_s)]
    return _fail_step(failed, command.error_code, command.error_message, None)


def _record_items(state: JobState, command: RecordItems) -> list[DomainEvent]:
    step = _expect_current(state, command.step_id, command.attempt)
    fresh = [item for item in command.items if not step.has_item(item.item_index)]
    events: list[DomainEvent] = [*command.progress_events, *(_stored_event(step, item) for item in fresh)]
    if len(step.artifacts) - len(step.lost) + len(fresh) >= state.generate.count:
        # Completion wins over a pending cancel.
        events.append(StepFinish(**step.identity, status="succeeded"))
    elif state.cancel_pending:
        events.append(_cancelled_finish_event(step))
    return events


def _stored_event(step: StepState, item: ArtifactWritten) -> ArtifactWritten | ArtifactRewritten:
    """What storing an item is: written once, and rewritten when it was lost and made again."""
    before = step.artifacts.get(item.item_index)
    if before is None:
        return item
    return copy_fields(item, ArtifactRewritten, artifact_id=before.artifact_id)


def _fail_attempt(state: JobState, command: FailAttempt) -> list[DomainEvent]:
    step = _expect_current(state, command.step_id, command.attempt)
    if state.cancel_pending:
        return [_cancelled_finish_event(step)]
    if command.retryable and step.attempts_without_progress < command.max_attempts:
        return [_retry_event(step, "failure", command.error_code, command.error_message, command.delay_s)]
    return _fail_step(step, command.error_code, command.error_message, command.item_index, command.lost)


def _finish_job(state: JobState, command: FinishJob) -> list[DomainEvent]:
    # A step that started before a cancel was reacted to finishes first: its finish is reacted to in turn.
    if state.outcome is not None or state.running_step is not None:
        return []
    if command.status == "failed":
        # A step that waits goes on waiting: a retry opens the job again, and the step's turn may come.
        return [JobFinish(status="failed")]
    # What was started finishes: a step that waits to be tried again will not be.
    waiting = [step for step in state.steps if step.status == "queued" and step.attempt > 0]
    return [*map(_cancelled_finish_event, waiting), JobFinish(status=command.status)]


def _request_cancel(state: JobState) -> list[DomainEvent]:
    if state.outcome == "cancelled":
        return []
    if state.outcome is not None:
        raise CommandRejected(f"The job's status is {state.outcome}; only a job that has not ended can be cancelled.")
    return [] if state.cancel_pending else [CancelRequested()]


def _request_retry(state: JobState) -> list[DomainEvent]:
    if state.outcome != "failed":
        found = "it has not ended" if state.outcome is None else f"its status is {state.outcome}"
        raise CommandRejected(f"Only a failed job can be retried; {found}.")
    if state.erased:
        raise CommandRejected("The job's prompt was erased; it can't be retried.")
    failed = next(step for step in state.steps if step.status == "failed")
    before = state.step_before(failed)
    if before is not None and state.error is not None and state.error.lost:
        return [RetryRequested(step_id=before.step_id, step_name=before.name, items=state.error.lost)]
    return [RetryRequested(step_id=failed.step_id, step_name=failed.name)]


def _request_erasure(state: JobState, command: RequestErasure) -> list[DomainEvent]:
    if state.outcome is None:
        raise CommandRejected("The job has not ended; cancel it before its text is erased.")
    if state.erased:
        return []
    return [*command.rewritten, JobErased(erased=[name for name in PRIVATE_FIELDS if getattr(state.private, name)])]


def _expect_unstarted(state: JobState, step_id: UUID, claimed_attempt: int) -> StepState:
    step = state.step(step_id)
    if step.attempt != claimed_attempt:
        raise StaleAttempt(f"job {state.job_id}, step {step.name}: attempt {step.attempt} began after the claim")
    return step


def _expect_current(state: JobState, step_id: UUID, attempt: int) -> StepState:
    step = state.step(step_id)
    if state.outcome is not None or step.status != "running" or step.attempt != attempt:
        raise StaleAttempt(
            f"job {state.job_id}, step {step.name}: attempt {attempt} is over (attempt {step.attempt}, {step.status})"
        )
    return step


def _cancelled_finish_event(step: StepState) -> StepFinish:
    return StepFinish(**step.identity, status="cancelled")


def _retry_event(
    step: StepState, reason: RetryReason, error_code: ErrorCode | None, error_message: str | None, delay_s: float
) -> StepRetry:
    return StepRetry(
        **step.identity, reason=reason, error_code=error_code, error_message=error_message, delay_s=delay_s
    )


def _fail_step(
    step: StepState, error_code: ErrorCode, error_message: str, item_index: int | None, lost: Sequence[int] = ()
) -> list[DomainEvent]:
    return [
        StepError(
            **step.identity, item_index=item_index, error_code=error_code, error_message=error_message, lost=list(lost)
        ),
        StepFinish(**step.identity, status="failed"),
    ]
