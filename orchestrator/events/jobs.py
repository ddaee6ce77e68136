"""The events of a whole job, and the union of all events of a job's stream. Pure."""

from typing import Any, ClassVar, Literal
from uuid import UUID

import msgspec

from orchestrator.events.base import DomainEvent, Level, PrivateField
from orchestrator.events.steps import (
    ArtifactRewritten,
    ArtifactWritten,
    EngineLost,
    ModelSelected,
    Outcome,
    SamplingBatch,
    SamplingOom,
    SamplingTick,
    StepError,
    StepEvent,
    StepFinish,
    StepName,
    StepRetry,
    StepStart,
    item_indexes_text,
)
from orchestrator.parameters import GenerateParams, UpscaleParams
from orchestrator.step_kinds import STEP_KINDS, expect_known_steps


class PlannedStep(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A step of a job as planned when the job was created. params: None for generate and upscale."""

    step_id: UUID
    name: StepName
    params: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        expect_known_steps(self.name)


class Idempotency(msgspec.Struct, frozen=True, kw_only=True):
    """By what a repeated request is known, in lower-case hex: SHA-256 of its key, HMAC-SHA-256 of it under the key."""

    key_sha256: str
    request_hmac: str


class JobCreated(DomainEvent, frozen=True, kw_only=True):
    """A job was accepted: it, its steps and the duty to run the first are durable."""

    code: ClassVar[str] = "job.created"
    type: Literal["generate"]
    steps: list[PlannedStep]
    generate: GenerateParams
    upscale: UpscaleParams | None
    idempotency: Idempotency | None = None

    def parameters(self) -> dict[str, Any]:
        """What was asked of each step, by its name, in the order of the steps."""
        own = {"generate": self.generate, "upscale": self.upscale}
        return {
            step.name: own.get(step.name) or msgspec.convert(step.params or {}, STEP_KINDS[step.name].recorded_type)
            for step in self.steps
        }

    def message(self) -> str:
        """The text of the event's log line."""
        chain = " then ".join(step.name for step in self.steps)
        return f"Job created: {chain}, {self.generate.count} image(s) of {self.generate.width}x{self.generate.height}."


class CancelRequested(DomainEvent, frozen=True, kw_only=True):
    """Somebody asked for the job to be cancelled."""

    code: ClassVar[str] = "job.cancel_requested"

    def message(self) -> str:
        """The text of the event's log line."""
        return "Cancellation requested."


class RetryRequested(StepEvent, frozen=True, kw_only=True, omit_defaults=True):
    """Somebody asked for a failed job to go on, at its failed step or at an earlier one.

    items: images of the step to make again although they were written, since schema version 2.
    """

    code: ClassVar[str] = "job.retry_requested"
    schema_version: ClassVar[int] = 2
    items: list[int] = msgspec.field(default_factory=list)

    @property
    def written_version(self) -> int:
        """The first version holds all but a retry that names items."""
        return 2 if self.items else 1

    def message(self) -> str:
        """The text of the event's log line."""
        again = f" Lost, and made again: {item_indexes_text(self.items)}." if self.items else ""
        return f"Retry of step {self.step_name} requested.{again}"


class JobFinish(DomainEvent, frozen=True, kw_only=True):
    """The job reached its end (until a retry is asked for, if it failed)."""

    code: ClassVar[str] = "job.finish"
    status: Outcome

    @property
    def level(self) -> Level:
        """A failed job is an error."""
        return "error" if self.status == "failed" else "info"

    def message(self) -> str:
        """The text of the event's log line."""
        return f"Job {self.status}."


class JobErased(DomainEvent, frozen=True, kw_only=True):
    """The personal text of a job that has ended was taken away. erased: what there was of it."""

    code: ClassVar[str] = "job.erased"
    erased: list[PrivateField]

    def message(self) -> str:
        """The text of the event's log line."""
        return f"Erased: {', '.join(self.erased) or 'nothing'}."


class JobQuarantined(DomainEvent, frozen=True, kw_only=True):
    """The job was set aside, since a process can't read or handle its history: nothing is decided on it any more.

    Appended whatever the history holds, without a fold. reader: whose code failed; at_version: the event that it failed
    at; reason: without personal text.
    """

    code: ClassVar[str] = "job.quarantined"
    reader: str
    at_version: int
    reason: str

    @property
    def level(self) -> Level:
        """An operator must look at it."""
        return "error"

    def message(self) -> str:
        """The text of the event's log line."""
        return f"Job set aside: {self.reader} failed at version {self.at_version}: {self.reason}"


class JobReleased(DomainEvent, frozen=True, kw_only=True):
    """An operator dealt with a job that was set aside. resume: it goes on; else it stays failed."""

    code: ClassVar[str] = "job.released"
    resume: bool

    def message(self) -> str:
        """The text of the event's log line."""
        return "Job released: it goes on." if self.resume else "Job released: it stays failed."


JobEvent = (
    JobCreated
    | StepStart
    | ModelSelected
    | SamplingTick
    | SamplingBatch
    | SamplingOom
    | EngineLost
    | ArtifactWritten
    | ArtifactRewritten
    | StepRetry
    | StepFinish
    | StepError
    | CancelRequested
    | RetryRequested
    | JobFinish
    | JobErased
    | JobQuarantined
    | JobReleased
)
"""Every event of a job's stream: the tagged union, its tag being the column `code`."""
