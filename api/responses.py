"""Makes answers from views and events. Pure."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar
from uuid import UUID

import msgspec
from starlette.responses import Response

from api import schemas
from eventstore.events import RecordedEvent
from eventstore.integrity.verifier import AuditEvent
from orchestrator import codec
from orchestrator.copying import copy_fields
from orchestrator.events import Status
from projections.job_view import ArtifactView, JobView, StepView
from projections.queries import JobSummary

T = TypeVar("T", bound=msgspec.Struct)


def format_timestamp(moment: datetime) -> str:
    """RFC 3339, UTC, six fractional digits."""
    utc = moment if moment.tzinfo is UTC else moment.astimezone(UTC)
    return f"{utc.isoformat(timespec='microseconds')[:-6]}Z"  # a third of strftime's time


def _format_optional_timestamp(moment: datetime | None) -> str | None:
    return None if moment is None else format_timestamp(moment)


def job_etag(version: int) -> str:
    """The entity tag (RFC 9110, section 8.8.3) of a job at a version."""
    return f'"v{version}"'


def job_links(job_id: UUID) -> schemas.Links:
    """The paths of a job's other resources."""
    base = f"/v1/jobs/{job_id}"
    return schemas.Links(
        this=base,
        artifacts=f"{base}/artifacts",
        progress=f"{base}/progress",
        stream=f"{base}/progress/stream",
        events=f"{base}/events",
    )


def job_answer(job_id: UUID, status: Status, created_at: datetime) -> schemas.JobAnswer:
    """The answer of submitting, cancelling and retrying a job."""
    stub = schemas.JobStub(
        id=job_id, status=status, type="generate", created_at=format_timestamp(created_at), links=job_links(job_id)
    )
    return schemas.JobAnswer(job=stub)


def job_detail_answer(view: JobView) -> schemas.Job:
    """The answer of GET /v1/jobs/{id}."""
    return copy_fields(
        view,
        schemas.Job,
        **_common_job_fields(view),
        params=msgspec.convert(view.params, schemas.JobParams) if view.params else None,
        steps=[_step_answer(step) for step in view.steps],
        links=job_links(view.job_id),
    )


def _common_job_fields(job: JobView | JobSummary) -> dict[str, Any]:
    """What a job's own answer and its line in a list have in common, beside the fields that are copied as they are."""
    return {
        "id": job.job_id,
        "type": "generate",
        "created_at": format_timestamp(job.created_at),
        "updated_at": format_timestamp(job.updated_at),
        "summary": schemas.Summary(count=job.count, completed=job.completed),
    }


def _step_answer(step: StepView) -> schemas.Step:
    return copy_fields(
        step,
        schemas.Step,
        id=step.step_id,
        started_at=_format_optional_timestamp(step.started_at),
        finished_at=_format_optional_timestamp(step.finished_at),
    )


def job_list_answer(items: Sequence[JobSummary], next_cursor: str | None) -> schemas.JobList:
    """The answer of GET /v1/jobs."""
    jobs = [copy_fields(item, schemas.JobListItem, **_common_job_fields(item)) for item in items]
    return schemas.JobList(jobs=jobs, next_cursor=next_cursor)


def artifact_list_answer(
    view: JobView, listed_artifacts: Sequence[ArtifactView], urls: Sequence[str], expires_at: datetime
) -> schemas.ArtifactList:
    """The answer of GET /v1/jobs/{id}/artifacts; a URL for each chosen one."""
    names = {step.step_id: step.name for step in view.steps}
    end = format_timestamp(expires_at)
    return schemas.ArtifactList(
        artifacts=[
            copy_fields(one, schemas.Artifact, id=one.artifact_id, step=names[one.step_id], url=url, expires_at=end)
            for one, url in zip(listed_artifacts, urls, strict=True)
        ]
    )


def history_answer(events: Sequence[RecordedEvent], *, has_more: bool) -> schemas.History:
    """The answer of GET /v1/jobs/{id}/events; audit events carry their proof."""
    return schemas.History(
        events=[schemas.HistoryEvent(**_recorded_event_fields(event), proof=_event_proof(event)) for event in events],
        next_after_version=events[-1].version if has_more else None,
        has_more=has_more,
    )


def _event_proof(event: RecordedEvent) -> schemas.Proof | msgspec.UnsetType:
    if not isinstance(event, AuditEvent):
        return msgspec.UNSET
    return copy_fields(event, schemas.Proof, recorded_at=format_timestamp(event.recorded_at))


def log_event_answer(event: RecordedEvent) -> schemas.LogEvent:
    """One event of the whole log."""
    return schemas.LogEvent(**_recorded_event_fields(event), stream=event.stream_id, category=event.category)


def _recorded_event_fields(event: RecordedEvent) -> dict[str, Any]:
    body = codec.decode_body_or_none(event)
    return {
        "version": event.version,
        "event_id": event.event_id,
        "code": event.code,
        "ts": format_timestamp(event.ts),
        "level": "info" if body is None else body.level,
        "step": None if body is None else body.step,
        "data": event.data,
        "meta": event.meta,
        "hash": event.hash.hex(),
    }


def json_response(value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Compact JSON, UTF-8."""
    return Response(msgspec.json.encode(value), status, headers=headers, media_type="application/json")
