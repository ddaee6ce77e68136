"""A job as its users see it. Pure.

`evolve_view` serves the projector, the reads, time travel and the live streams alike.
"""

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Any, TypeVar
from uuid import UUID

import msgspec
from msgspec.structs import replace

from eventstore.events import EventRow
from orchestrator import codec
from orchestrator.copying import copy_fields
from orchestrator.events import (
    ArtifactEvent,
    ArtifactRewritten,
    ArtifactWritten,
    DecodedEvent,
    ErrorCode,
    JobCreated,
    JobErased,
    JobFinish,
    JobQuarantined,
    ModelSelected,
    RetryRequested,
    Status,
    StepError,
    StepFinish,
    StepName,
    StepRetry,
    StepStart,
)
from orchestrator.parameters import ImageFormat
from orchestrator.quarantine import QUARANTINE_MARK_CODES, last_quarantine_mark, mark_resumes_job
from orchestrator.step_kinds import STEP_KINDS

VIEWS_VERSION = 1
"""Of what is kept of a job. Whoever lets `evolve_view` make something else of the same events adds one: the projector
then builds the read model anew, beside the one that serves."""

S = TypeVar("S", bound=EventRow | DecodedEvent)


class ArtifactView(msgspec.Struct, frozen=True, kw_only=True):
    """One image in the object store."""

    artifact_id: UUID
    step_id: UUID
    item_index: int
    created_at: datetime
    format: ImageFormat
    width: int
    height: int
    seed: int
    s3_key: str
    bytes: int
    sha256: str


class StepView(msgspec.Struct, frozen=True, kw_only=True):
    """One step. completed: items that have their artifact."""

    step_id: UUID
    name: StepName
    status: Status = "queued"
    attempt: int = 0
    started_at: datetime | None = None
    finished_at: datetime | None = None
    completed: int = 0
    metadata: dict[str, Any] = msgspec.field(default_factory=dict, name="metadata_json")


class JobRow(msgspec.Struct, frozen=True, kw_only=True):
    """One job, but for its steps and artifacts."""

    job_id: UUID
    tenant: str
    type: str
    status: Status
    created_at: datetime
    updated_at: datetime
    version: int
    count: int
    params: dict[str, Any]
    metadata: dict[str, str]
    error_code: ErrorCode | None = None
    error_message: str | None = None


class JobView(JobRow, frozen=True, kw_only=True):
    """One job. artifacts: those of the events seen so far, or none if the view was loaded without them."""

    steps: tuple[StepView, ...]
    artifacts: tuple[ArtifactView, ...] = ()

    @property
    def terminal(self) -> bool:
        """Has the job reached its end?"""
        return self.status in {"succeeded", "failed", "cancelled"}

    @property
    def completed(self) -> int:
        """How many images the last step has written."""
        return self.steps[-1].completed if self.steps else 0

    @property
    def last_step(self) -> StepView:
        """The step whose artifacts are the job's result."""
        return self.steps[-1]


class MissingPrecedingEvent(Exception):
    """An event came before the one that precedes it."""


def fold_history(history: Sequence[EventRow], *, lenient: bool = False) -> JobView | None:
    """The view after a whole history, by its marks: of a job that is set aside, what can't be read is passed over.

    A job that was released to go on is folded as if it had never been set aside. lenient: passes over what can't be
    read in any case, for whoever must show something. Raises what `codec.decode_event` and `evolve_view` do.
    """
    last = last_quarantine_mark(history)
    resumed = last is not None and mark_resumes_job(last)
    lenient = lenient or (last is not None and not resumed)
    seen: JobView | None = None
    for event in history:
        if resumed and event.code in QUARANTINE_MARK_CODES:
            seen = _skip_event(seen, event)
            continue
        try:
            seen = evolve_view(seen, codec.decode_event(event))
        except Exception:  # a fold may break in any way on what it was not written for
            if not lenient:
                raise
            seen = _skip_event(seen, event)
    return seen


def _skip_event(view: JobView | None, event: EventRow) -> JobView | None:
    """The view after an event that changes nothing in it."""
    return None if view is None else replace(view, version=event.version, updated_at=event.ts)


def minimal_view(newest_view: JobView, stored_view: JobView | None) -> JobView:
    """What is kept of a job that is set aside where its rows can't be stored: what was kept before, and its end."""
    known = stored_view or replace(newest_view, count=0, params={}, metadata={}, steps=(), artifacts=())
    return replace(
        known,
        status=newest_view.status,
        version=newest_view.version,
        updated_at=newest_view.updated_at,
        error_code=newest_view.error_code,
        error_message=newest_view.error_message,
    )


def fold_events(events: Iterable[DecodedEvent]) -> JobView | None:
    """The view after a whole history; None for an empty one."""
    seen: JobView | None = None
    for event in events:
        seen = evolve_view(seen, event)
    return seen


def history_as_of(history: Sequence[S], moment: datetime) -> Sequence[S]:
    """A history as it was at a time: its longest beginning whose `ts` are all by then."""
    return history[: next((n for n, event in enumerate(history) if event.ts > moment), len(history))]


def evolve_view(view: JobView | None, event: DecodedEvent) -> JobView:  # noqa: C901, PLR0911, PLR0912  # one case an event
    """The view after one more event. An applied one changes nothing; a gap raises `MissingPrecedingEvent`."""
    version = 0 if view is None else view.version
    if view is not None and event.version <= version:
        return view
    if isinstance(event.body, JobQuarantined):
        return _apply_quarantined(view, event)  # even where what came before can't be read
    if event.version != version + 1:
        raise MissingPrecedingEvent(
            f"job {event.stream_id}: the view is at version {version}, event {event.version} can't follow"
        )
    if view is None:
        if not isinstance(event.body, JobCreated):
            raise MissingPrecedingEvent(f"job {event.stream_id}: the history does not begin with job.created")
        return _apply_created(event, event.body)
    view = replace(view, version=event.version, updated_at=event.ts)
    match event.body:
        case StepStart() as body:
            return _apply_started(view, body, event.ts)
        case ModelSelected() as body:
            chosen = {"engine": body.engine, "source": body.source, "model_id": body.model_id}
            if body.model_sha256 is not None:
                chosen["model_sha256"] = body.model_sha256
            return _replace_step(view, body.step_id, lambda step: replace(step, metadata={**step.metadata, **chosen}))
        case ArtifactWritten() as body:
            return _apply_written(view, body, event.ts)
        case ArtifactRewritten() as body:
            return _apply_rewritten(view, body, event.ts)
        case StepRetry() as body:
            return _apply_step_retry(view, body)
        case StepFinish() as body:
            return _apply_step_finish(view, body, event.ts)
        case StepError() as body:
            return replace(view, error_code=body.error_code, error_message=body.error_message)
        case RetryRequested() as body:
            return _apply_retry_requested(replace(view, status="queued", error_code=None, error_message=None), body)
        case JobFinish() as body:
            return _apply_job_finish(view, body, event.ts)
        case JobErased() if view.params:  # none are known of a job whose first event can't be read
            return replace(view, params={**view.params, "prompt": None, "negative_prompt": None}, metadata={})
        case _:
            return view


def _apply_quarantined(view: JobView | None, event: DecodedEvent) -> JobView:
    """The job failed: whatever is known of it stands, which may be nothing."""
    known = view or JobView(
        job_id=event.stream_id,
        tenant=event.tenant,
        type="generate",
        status="failed",
        created_at=event.ts,
        updated_at=event.ts,
        version=event.version,
        count=0,
        params={},
        metadata={},
        steps=(),
    )
    return replace(
        known,
        status="failed",
        version=event.version,
        updated_at=event.ts,
        error_code="internal",
        error_message="The job was set aside, since its history can't be read; an operator can release it.",
    )


def _apply_created(event: DecodedEvent, body: JobCreated) -> JobView:
    asked = {name: msgspec.to_builtins(params) for name, params in body.parameters().items()}
    params = {
        "type": body.type,
        "prompt": event.private.prompt,
        "negative_prompt": event.private.negative_prompt,
        **asked["generate"],
        "chain": {name: params for name, params in asked.items() if name != "generate"} or None,
    }
    return JobView(
        job_id=event.stream_id,
        tenant=event.tenant,
        type=body.type,
        status="queued",
        created_at=event.ts,
        updated_at=event.ts,
        version=event.version,
        count=body.generate.count,
        params=params,
        metadata=event.private.metadata or {},
        steps=tuple(
            StepView(step_id=step.step_id, name=step.name, metadata=_shown_parameters(step.name, asked))
            for step in body.steps
        ),
    )


def _shown_parameters(step: StepName, parameters_by_step: dict[str, Any]) -> dict[str, Any]:
    """The parameters that a step's metadata shows."""
    return {name: parameters_by_step[step][name] for name in STEP_KINDS[step].shown_parameters}


def _apply_started(view: JobView, body: StepStart, ts: datetime) -> JobView:
    def start(step: StepView) -> StepView:
        return replace(step, status="running", attempt=body.attempt, started_at=step.started_at or ts, finished_at=None)

    return _replace_step(replace(view, status="running"), body.step_id, start)


def _apply_written(view: JobView, body: ArtifactWritten, ts: datetime) -> JobView:
    view = replace(view, artifacts=(*view.artifacts, _artifact_view(body, ts)))
    return _replace_step(view, body.step_id, lambda step: replace(step, completed=step.completed + 1))


def _apply_rewritten(view: JobView, body: ArtifactRewritten, ts: datetime) -> JobView:
    """Other bytes of an image. The projector's view may be without it: its row stands, and takes these from another."""
    for index, artifact in enumerate(view.artifacts):
        if (artifact.step_id, artifact.item_index) == (body.step_id, body.item_index):
            after = replace(artifact, bytes=body.bytes, sha256=body.sha256)
            return replace(view, artifacts=(*view.artifacts[:index], after, *view.artifacts[index + 1 :]))
    return replace(view, artifacts=(*view.artifacts, _artifact_view(body, ts)))


def _artifact_view(body: ArtifactEvent, ts: datetime) -> ArtifactView:
    return copy_fields(body, ArtifactView, created_at=ts)


def _apply_step_retry(view: JobView, body: StepRetry) -> JobView:
    return _replace_step(view, body.step_id, lambda step: replace(step, status="queued", attempt=body.attempt))


def _apply_retry_requested(view: JobView, body: RetryRequested) -> JobView:
    """The step that is to run again is queued, and so is one after it that had failed."""
    for step in view.steps:
        if step.step_id == body.step_id or step.status == "failed":
            view = _replace_step(view, step.step_id, lambda again: replace(again, status="queued", finished_at=None))
    return view


def _apply_step_finish(view: JobView, body: StepFinish, ts: datetime) -> JobView:
    return _replace_step(
        view, body.step_id, lambda step: replace(step, status=body.status, attempt=body.attempt, finished_at=ts)
    )


def _apply_job_finish(view: JobView, body: JobFinish, ts: datetime) -> JobView:
    view = replace(view, status=body.status)
    if body.status == "succeeded":
        return view
    if body.status == "cancelled":
        view = replace(view, error_code="cancelled", error_message="The job was cancelled.")
        for step in view.steps:
            if step.status in {"queued", "running"}:
                view = _replace_step(
                    view, step.step_id, lambda open_: replace(open_, status="cancelled", finished_at=ts)
                )
    return view


def _replace_step(view: JobView, step_id: UUID, change: Callable[[StepView], StepView]) -> JobView:
    return replace(view, steps=tuple(change(step) if step.step_id == step_id else step for step in view.steps))
