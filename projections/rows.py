"""Views to and from the rows of `readmodel`."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec

from eventstore.events import ErrorCode, Status, StepName
from projections.views import ArtifactView, JobView, StepView


class JobRow(msgspec.Struct, frozen=True, kw_only=True):
    """A row of readmodel.jobs."""

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
    error_code: ErrorCode | None
    error_message: str | None


class StepRow(msgspec.Struct, frozen=True, kw_only=True):
    """A row of readmodel.steps."""

    step_id: UUID
    job_id: UUID
    ordinal: int
    name: StepName
    status: Status
    attempt: int
    started_at: datetime | None
    finished_at: datetime | None
    completed: int
    metadata_json: dict[str, Any]


class ArtifactRow(ArtifactView, frozen=True, kw_only=True):
    """A row of readmodel.artifacts."""

    job_id: UUID


class Rows(msgspec.Struct, frozen=True, kw_only=True):
    """One job's rows, as one JSON document of the database; the steps in order, the artifacts by step and index."""

    job: JobRow
    steps: list[StepRow]
    artifacts: list[ArtifactRow] | None = None


_JOB_FIELDS = JobRow.__struct_fields__
_ARTIFACT_FIELDS = ArtifactView.__struct_fields__


def to_view(rows: Rows) -> JobView:
    """The view that the rows keep."""
    return JobView(
        **{name: getattr(rows.job, name) for name in _JOB_FIELDS},
        steps=tuple(
            StepView(
                step_id=step.step_id,
                name=step.name,
                status=step.status,
                attempt=step.attempt,
                started_at=step.started_at,
                finished_at=step.finished_at,
                completed=step.completed,
                metadata=step.metadata_json,
            )
            for step in rows.steps
        ),
        artifacts=tuple(
            ArtifactView(**{name: getattr(row, name) for name in _ARTIFACT_FIELDS}) for row in rows.artifacts or ()
        ),
    )


def job_row(job: JobView) -> JobRow:
    """The row of a job."""
    return JobRow(**{name: getattr(job, name) for name in _JOB_FIELDS})


def step_rows(job: JobView) -> list[StepRow]:
    """The rows of a job's steps."""
    return [
        StepRow(
            step_id=step.step_id,
            job_id=job.job_id,
            ordinal=ordinal,
            name=step.name,
            status=step.status,
            attempt=step.attempt,
            started_at=step.started_at,
            finished_at=step.finished_at,
            completed=step.completed,
            metadata_json=step.metadata,
        )
        for ordinal, step in enumerate(job.steps)
    ]


def artifact_rows(job: JobView, artifacts: Iterable[ArtifactView]) -> list[ArtifactRow]:
    """The rows of some of a job's artifacts."""
    return [
        ArtifactRow(job_id=job.job_id, **{name: getattr(artifact, name) for name in _ARTIFACT_FIELDS})
        for artifact in artifacts
    ]


def text(rows: Sequence[msgspec.Struct]) -> str:
    """Rows as the JSON that `readmodel.project` takes."""
    return msgspec.json.encode(rows).decode()
