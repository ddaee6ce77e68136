"""Converts views to rows of `readmodel` and back."""

from collections.abc import Iterable, Sequence
from typing import Any
from uuid import UUID

import msgspec
from msgspec.structs import asdict, astuple

from orchestrator.copying import copy_fields
from orchestrator.step_kinds import expect_known_steps
from projections.job_view import ArtifactView, JobRow, JobView, StepView


class StepRow(StepView, frozen=True, kw_only=True):
    """A row of readmodel.steps."""

    job_id: UUID
    ordinal: int


class ArtifactRow(ArtifactView, frozen=True, kw_only=True):
    """A row of readmodel.artifacts."""

    job_id: UUID


class JobRows(msgspec.Struct, frozen=True, kw_only=True):
    """One job's rows, as a JSON document from the database. Steps and artifacts are in order."""

    job: JobRow
    steps: tuple[StepView, ...]
    artifacts: tuple[ArtifactView, ...] | None = None

    def __post_init__(self) -> None:
        """Raise `ValueError` for a name that is no kind of step, as a row of a later release may have it."""
        expect_known_steps(*(step.name for step in self.steps))


def rows_to_view(rows: JobRows) -> JobView:
    """The view that the rows store."""
    return JobView(**asdict(rows.job), steps=rows.steps, artifacts=rows.artifacts or ())


def job_row(job: JobView) -> JobRow:
    """The row of a job."""
    return copy_fields(job, JobRow)


def step_rows(job: JobView) -> list[StepRow]:
    """The rows of a job's steps."""
    return [copy_fields(step, StepRow, job_id=job.job_id, ordinal=n) for n, step in enumerate(job.steps)]


def artifact_rows(job: JobView, artifacts: Iterable[ArtifactView]) -> list[ArtifactRow]:
    """The rows of some of a job's artifacts."""
    return [copy_fields(artifact, ArtifactRow, job_id=job.job_id) for artifact in artifacts]


def rows_to_json(rows: Sequence[msgspec.Struct]) -> str:
    """Rows as JSON, for `projector.project`."""
    return msgspec.json.encode(rows).decode()


COPY_COLUMNS = {
    "jobs": JobRow.__struct_encode_fields__,
    "steps": StepRow.__struct_encode_fields__,
    "artifacts": ArtifactRow.__struct_encode_fields__,
}
"""The columns of each table, in the order of `copy_records`."""


def copy_records(jobs: Sequence[JobView]) -> dict[str, list[tuple[Any, ...]]]:
    """All rows of some jobs, by table, as records for COPY. JSON columns are text."""
    return {
        "jobs": [_copy_record(job_row(job)) for job in jobs],
        "steps": [(*_copy_record(step), job.job_id, n) for job in jobs for n, step in enumerate(job.steps)],
        "artifacts": [(*astuple(artifact), job.job_id) for job in jobs for artifact in job.artifacts],
    }


def _copy_record(row: msgspec.Struct) -> tuple[Any, ...]:
    return tuple(msgspec.json.encode(value).decode() if isinstance(value, dict) else value for value in astuple(row))
