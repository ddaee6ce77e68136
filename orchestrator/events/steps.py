"""The events of a step: starts, progress, images, retries, and its end. Pure."""

from typing import Annotated, ClassVar, Literal
from uuid import UUID

import msgspec

from orchestrator.events.base import DomainEvent, Level
from orchestrator.parameters import ImageFormat
from orchestrator.step_kinds import STEP_KINDS, expect_known_steps

StepName = Annotated[str, msgspec.Meta(extra={"values": STEP_KINDS})]
"""The name of a kind of step in the table; each type with such a field rejects other names."""


Status = Literal["queued", "running", "succeeded", "failed", "cancelled"]


Outcome = Literal["succeeded", "failed", "cancelled"]


MemoryMeasure = Literal["smaller_batch", "tiling", "offload"]


RetryReason = Literal["failure", "hand_back", "not_started"]


ErrorCode = Literal["oom", "provider_error", "infra_unavailable", "timeout", "invalid_input", "cancelled", "internal"]


class StepEvent(DomainEvent, frozen=True, kw_only=True):
    """The data of an event of one step."""

    step_id: UUID
    step_name: StepName = msgspec.field(name="step")

    def __post_init__(self) -> None:
        expect_known_steps(self.step_name)

    @property
    def step(self) -> str:
        """The name of the step that the event is about."""
        return self.step_name


class StepStart(StepEvent, frozen=True, kw_only=True):
    """A runner took a step; the attempt number fences off every earlier runner of the step."""

    code: ClassVar[str] = "step.start"
    attempt: int
    runner: str

    def message(self) -> str:
        """The text of the event's log line."""
        return f"Step {self.step_name} started, attempt {self.attempt}."


class ModelSelected(StepEvent, frozen=True, kw_only=True, omit_defaults=True):
    """Which engine renders a step, and from where it came. model_sha256: of the list of its files' hashes."""

    code: ClassVar[str] = "model.selected"
    attempt: int
    model_id: UUID | None
    engine: str
    source: str
    model_sha256: str | None = None

    def message(self) -> str:
        """The text of the event's log line."""
        return f"Step {self.step_name} uses {self.engine} ({self.source})."


class DeviceMemory(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes of a device's memory that a batch found in use, that were in use at most meanwhile, and that it left."""

    before: int
    peak: int
    after: int
    total: int


class SamplingTick(StepEvent, frozen=True, kw_only=True):
    """A sign of life: so many of its steps (or tiles) the engine has done for some items."""

    code: ClassVar[str] = "sampling.tick"
    attempt: int
    items: list[int]
    done: int
    of: int

    def message(self) -> str:
        """The text of the event's log line."""
        return f"Step {self.step_name} is at {self.done} of {self.of} for {item_indexes_text(self.items)}."


class SamplingBatch(StepEvent, frozen=True, kw_only=True):
    """The engine has rendered some items, in a batch of `size` images. memory: None where the device has no count."""

    code: ClassVar[str] = "sampling.batch"
    attempt: int
    items: list[int]
    size: int
    memory: DeviceMemory | None

    def message(self) -> str:
        """The text of the event's log line."""
        peak = "" if self.memory is None else f", at most {self.memory.peak >> 20} MiB in use"
        return f"Step {self.step_name} rendered {item_indexes_text(self.items)} in a batch of {self.size}{peak}."


class SamplingOom(StepEvent, frozen=True, kw_only=True):
    """The engine ran out of memory. next: what it tries instead; None: there is nothing left to try."""

    code: ClassVar[str] = "sampling.oom"
    attempt: int
    items: list[int]
    size: int
    next: MemoryMeasure | None
    memory: DeviceMemory | None

    @property
    def level(self) -> Level:
        """Whoever runs the service should give it more memory, or smaller jobs."""
        return "warning"

    def message(self) -> str:
        """The text of the event's log line."""
        then = "nothing is left to try" if self.next is None else f"trying {self.next.replace('_', ' ')}"
        return f"Step {self.step_name} ran out of memory with a batch of {self.size}; {then}."


class EngineLost(StepEvent, frozen=True, kw_only=True):
    """The process that rendered died, or was killed since it said nothing for too long."""

    code: ClassVar[str] = "engine.lost"
    attempt: int
    items: list[int]
    reason: str

    @property
    def level(self) -> Level:
        """Worth a look, if it comes again."""
        return "warning"

    def message(self) -> str:
        """The text of the event's log line."""
        return (
            f"Step {self.step_name} lost its engine while it rendered {item_indexes_text(self.items)}: {self.reason}."
        )


class Rendering(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How an image came about, beside what was asked for: with it the very same pixels can be made again.

    engine: diffusers, gan, diffusion or image. model_sha256: of the list of its files' hashes. weights_sha256: of
    its file of weights, where there is one alone. scheduler: the class that sampled. batch_size, batch_index: how many
    images were rendered at once, and which of them this is. tile: pixels of a source's side that an upscaler took at
    once. measures: what was done to save memory.
    """

    engine: str
    device: str
    dtype: str
    versions: dict[str, str]
    model_id: UUID | None = None
    model_sha256: str | None = None
    weights_sha256: str | None = None
    scheduler: str | None = None
    batch_size: int = 1
    batch_index: int = 0
    tile: int | None = None
    measures: list[MemoryMeasure] = []


class ArtifactEvent(StepEvent, frozen=True, kw_only=True, omit_defaults=True):
    """An image as it lies in the object store. bytes: its size; sha256: of its bytes, lower-case hex."""

    attempt: int
    item_index: int
    artifact_id: UUID
    format: ImageFormat
    width: int
    height: int
    seed: int
    s3_key: str
    bytes: int
    sha256: str


class ArtifactWritten(ArtifactEvent, frozen=True, kw_only=True, omit_defaults=True):
    """An image of one item was put into the object store.

    rendering: how it came about; None where no model had a part in it, or an earlier attempt left it.
    """

    code: ClassVar[str] = "artifact.written"
    rendering: Rendering | None = None

    def message(self) -> str:
        """The text of the event's log line."""
        return f"Step {self.step_name} wrote item {self.item_index} ({self.width}x{self.height})."


class ArtifactRewritten(ArtifactEvent, frozen=True, kw_only=True, omit_defaults=True):
    """An image's file has other bytes now, under its old key.

    Either a later attempt made it again, since it was gone from the store or replaced; rendering tells how. Or its
    personal text was taken out of it, beside `job.erased`: then the attempt is that of the picture.
    """

    code: ClassVar[str] = "artifact.rewritten"
    rendering: Rendering | None = None

    def message(self) -> str:
        """The text of the event's log line."""
        return f"Item {self.item_index} of step {self.step_name} was stored anew."


class StepRetry(StepEvent, frozen=True, kw_only=True):
    """An attempt ended without finishing the step, which waits to be taken again, `delay_s` seconds at least.

    reason: `not_started` for an attempt that failed before it could append its `step.start` (since schema version 2).
    """

    code: ClassVar[str] = "step.retry"
    schema_version: ClassVar[int] = 2
    attempt: int
    reason: RetryReason
    error_code: ErrorCode | None
    error_message: str | None
    delay_s: float

    @property
    def written_version(self) -> int:
        """The first version holds all but the reason that it does not know."""
        return 2 if self.reason == "not_started" else 1

    @property
    def level(self) -> Level:
        """A failure is worth a warning, a runner that stops is not."""
        return "info" if self.reason == "hand_back" else "warning"

    def message(self) -> str:
        """The text of the event's log line."""
        if self.reason == "hand_back":
            return f"Step {self.step_name} was handed back by a runner that stops."
        if self.reason == "not_started":
            return f"Step {self.step_name} could not start, next try in {self.delay_s:g} s: {self.error_message}"
        return f"Step {self.step_name} will be tried again in {self.delay_s:g} s: {self.error_message}"


class StepFinish(StepEvent, frozen=True, kw_only=True):
    """A step reached its end."""

    code: ClassVar[str] = "step.finish"
    attempt: int
    status: Outcome

    def message(self) -> str:
        """The text of the event's log line."""
        return f"Step {self.step_name} {self.status}."


class StepError(StepEvent, frozen=True, kw_only=True, omit_defaults=True):
    """Why a step failed for good; `step.finish` follows in the same commit.

    lost: items of the step before, whose images are gone from the store or changed.
    """

    code: ClassVar[str] = "error"
    attempt: int
    item_index: int | None
    error_code: ErrorCode
    error_message: str
    lost: list[int] = msgspec.field(default_factory=list)

    @property
    def level(self) -> Level:
        """Always an error."""
        return "error"

    def message(self) -> str:
        """The text of the event's log line."""
        return self.error_message


def item_indexes_text(indexes: list[int]) -> str:
    """Some items as a log line names them: `item 0`, `items 0, 2`."""
    return f"item {indexes[0]}" if len(indexes) == 1 else f"items {', '.join(map(str, indexes))}"
