"""Converts views to rows of `readmodel` and back."""

from collections.abc import Iterable, Sequence
from typing import Any
from uuid import UUID

import msgspec
from msgspec.structs import asdict, astuple

from orchestrator.copying import copy_fields
from projections.job_view import ArtifactView, JobHead, JobView, StepView


class StepRow(StepView, frozen=True, kw_only=True):
    """A row of readmodel.steps."""

    job_id: UUID
    ordinal: int


class ArtifactRow(ArtifactView, frozen=True, kw_only=True):
    """A row of readmodel.artifacts."""

    job_id: UUID


class Rows(msgspec.Struct, frozen=True, kw_only=True):
    """One job's rows, as a JSON document from the database. Steps and artifacts are in order."""

    job: JobHead
    steps: tuple[StepView, ...]
    artifacts: tuple[ArtifactView, ...] | None = None


def to_view(rows: Rows) -> JobView:
    """The view that the rows store."""
    return JobView(**asdict(rows.job), steps=rows.steps, artifacts=rows.artifacts or ())


def job_row(job: JobView) -> JobHead:
    """The row of a job."""
    return copy_fields(job, JobHead)


def step_rows(job: JobView) -> list[StepRow]:
    """The rows of a job's steps."""
    return [copy_fields(step, StepRow, job_id=job.job_id, ordinal=n) for n, step in enumerate(job.steps)]


def artifact_rows(job: JobView, artifacts: Iterable[ArtifactView]) -> list[ArtifactRow]:
    """The rows of some of a job's artifacts."""
    return [copy_fields(artifact, ArtifactRow, job_id=job.job_id) for artifact in artifacts]


def json_text(rows: Sequence[msgspec.Struct]) -> str:
    """Rows as JSON, for `projector.project`."""
    return msgspec.json.encode(rows).decode()


COLUMNS = {
    "jobs": JobHead.__struct_encode_fields__,
    "steps": StepRow.__struct_encode_fields__,
    "artifacts": ArtifactRow.__struct_encode_fields__,
}
"""The columns of each table, in the order of `copy_records`."""


def copy_records(jobs: Sequence[JobView]) -> dict[str, list[tuple[Any, ...]]]:
    """All rows of some jobs, by table, as records for COPY. JSON columns are text."""
    steps = [row for job in jobs for row in step_rows(job)]
    return {
        "jobs": [_with_json_text(job_row(job)) for job in jobs],
        "steps": [_with_json_text(row) for row in steps],
        "artifacts": [(*astuple(artifact), job.job_id) for job in jobs for artifact in job.artifacts],
    }


def _with_json_text(row: msgspec.Struct) -> tuple[Any, ...]:
    return tuple(msgspec.json.encode(value).decode() if isinstance(value, dict) else value for value in astuple(row))
