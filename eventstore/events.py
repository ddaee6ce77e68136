"""The vocabulary of the log: every event as a type. Pure: no I/O, no clock, no randomness.

An event's `data` is hashed with the log and can never change; `Private` text lies beside it, outside the hash, and can
be erased. Data never uses the names ts, level, code, message, step or item_index for anything else.
"""

from datetime import datetime
from typing import Any, ClassVar, Literal, get_args
from uuid import UUID

import msgspec

Category = Literal["job", "model", "key", "outbox", "anchor"]
StepName = Literal["generate", "upscale"]
Status = Literal["queued", "running", "succeeded", "failed", "cancelled"]
Outcome = Literal["succeeded", "failed", "cancelled"]
Level = Literal["info", "warning", "error"]
ImageFormat = Literal["png", "jpg"]
ModelKind = Literal["generator", "gan-upscaler", "diffusion-upscaler"]
Measure = Literal["smaller_batch", "tiling", "offload"]
Scope = Literal["jobs", "audit", "admin"]
RetryReason = Literal["failure", "hand_back", "not_started"]
ErrorCode = Literal["oom", "provider_error", "infra_unavailable", "timeout", "invalid_input", "cancelled", "internal"]


class Private(msgspec.Struct, frozen=True, kw_only=True):
    """Personal text of a job: what erasure takes away. All fields are None after it.

    request_id, traceparent: as the client sent them with the request that caused the event.
    """

    prompt: str | None = None
    negative_prompt: str | None = None
    metadata: dict[str, str] | None = None
    request_id: str | None = None
    traceparent: str | None = None


PrivateField = Literal["prompt", "negative_prompt", "metadata"]
PRIVATE: tuple[PrivateField, ...] = get_args(PrivateField)


class Meta(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Where an event came from: the request that caused it, whose API key it bore, and the process that appended it.

    request_id: drawn here; in events of releases that had no `Private.request_id`, the client's where it sent one.
    traceparent: of those releases alone.
    """

    request_id: str | None = None
    traceparent: str | None = None
    actor: str | None = None
    key_id: UUID | None = None


class GenerateParams(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked of generate, defaults filled and the base seed drawn; the prompts are `Private`."""

    width: int
    height: int
    steps: int
    guidance: float
    scheduler: str | None
    format: ImageFormat
    embed_metadata: bool
    seed: int
    count: int
    model_id: UUID | None
    provider: str | None
    engine: str | None


class UpscaleParams(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked of upscale."""

    scale: Literal[2, 4]
    impl: Literal["auto", "image", "gan", "diffusion"]
    strict_scale: bool


class PlannedStep(msgspec.Struct, frozen=True, kw_only=True):
    """A step of a job as planned when the job was created."""

    step_id: UUID
    name: StepName


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes of a device's memory that a batch found in use, that were in use at most meanwhile, and that it left."""

    before: int
    peak: int
    after: int
    total: int


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
    measures: list[Measure] = []


class DomainEvent(msgspec.Struct, frozen=True, kw_only=True):
    """The data of an event. Subclasses name their code, and the schema version that they write."""

    code: ClassVar[str]
    schema_version: ClassVar[int] = 1

    @property
    def written_version(self) -> int:
        """The schema version that it is written in: the earliest that can hold it, so that older processes go on."""
        return self.schema_version

    @property
    def level(self) -> Level:
        """How loudly a log line of this event speaks."""
        return "info"

    @property
    def step(self) -> str | None:
        """The name of the step that the event is about; None for an event of the whole job."""
        return None

    def message(self) -> str:
        """One English sentence for people; not for parsing."""
        raise NotImplementedError


class StepEvent(DomainEvent, frozen=True, kw_only=True):
    """The data of an event of one step."""

    step_id: UUID
    step_name: StepName = msgspec.field(name="step")

    @property
    def step(self) -> str:
        """The name of the step that the event is about."""
        return self.step_name


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

    def message(self) -> str:
        """The text of the event's log line."""
        chain = " then ".join(step.name for step in self.steps)
        return f"Job created: {chain}, {self.generate.count} image(s) of {self.generate.width}x{self.generate.height}."


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


class SamplingTick(StepEvent, frozen=True, kw_only=True):
    """A sign of life: so many of its steps (or tiles) the engine has done for some items."""

    code: ClassVar[str] = "sampling.tick"
    attempt: int
    items: list[int]
    done: int
    of: int

    def message(self) -> str:
        """The text of the event's log line."""
        return f"Step {self.step_name} is at {self.done} of {self.of} for {_items(self.items)}."


class SamplingBatch(StepEvent, frozen=True, kw_only=True):
    """The engine has rendered some items, in a batch of `size` images. memory: None where the device has no count."""

    code: ClassVar[str] = "sampling.batch"
    attempt: int
    items: list[int]
    size: int
    memory: Memory | None

    def message(self) -> str:
        """The text of the event's log line."""
        peak = "" if self.memory is None else f", at most {self.memory.peak >> 20} MiB in use"
        return f"Step {self.step_name} rendered {_items(self.items)} in a batch of {self.size}{peak}."


class SamplingOom(StepEvent, frozen=True, kw_only=True):
    """The engine ran out of memory. next: what it tries instead; None: there is nothing left to try."""

    code: ClassVar[str] = "sampling.oom"
    attempt: int
    items: list[int]
    size: int
    next: Measure | None
    memory: Memory | None

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
        return f"Step {self.step_name} lost its engine while it rendered {_items(self.items)}: {self.reason}."


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
    lost: list[int] = []

    @property
    def level(self) -> Level:
        """Always an error."""
        return "error"

    def message(self) -> str:
        """The text of the event's log line."""
        return self.error_message


def _items(indexes: list[int]) -> str:
    return f"item {indexes[0]}" if len(indexes) == 1 else f"items {', '.join(map(str, indexes))}"


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
    items: list[int] = []

    @property
    def written_version(self) -> int:
        """The first version holds all but a retry that names items."""
        return 2 if self.items else 1

    def message(self) -> str:
        """The text of the event's log line."""
        again = f" Lost, and made again: {_items(self.items)}." if self.items else ""
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


class ModelFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file of a model. path: relative, with slashes; sha256: of its bytes, lower-case hex; size: in bytes."""

    path: str
    sha256: str
    size: int


class ModelRegistered(DomainEvent, frozen=True, kw_only=True, omit_defaults=True):
    """A model was made known, its files read. It may be used once it is enabled, too.

    version: the model's own. parameters_schema: JSON Schema of what may be asked of it. trusted: whoever added it lets
    files be opened that may run code then (pickles).
    """

    code: ClassVar[str] = "model.registered"
    name: str
    kind: ModelKind
    version: str
    source_uri: str
    local_path: str
    files: list[ModelFile]
    capabilities: list[StepName]
    parameters_schema: dict[str, Any]
    trusted: bool = False

    def message(self) -> str:
        """The text of the event's log line."""
        return f"Model {self.name} {self.version} registered: {self.kind}, {len(self.files)} file(s)."


class ModelEnabled(DomainEvent, frozen=True, kw_only=True):
    """Jobs may use the model."""

    code: ClassVar[str] = "model.enabled"

    def message(self) -> str:
        """The text of the event's log line."""
        return "Model enabled."


class ModelDisabled(DomainEvent, frozen=True, kw_only=True):
    """No new job may use the model."""

    code: ClassVar[str] = "model.disabled"

    def message(self) -> str:
        """The text of the event's log line."""
        return "Model disabled."


class ModelVerified(DomainEvent, frozen=True, kw_only=True):
    """The model's files were read again. problems: a sentence for each difference; none if it is intact."""

    code: ClassVar[str] = "model.verified"
    intact: bool
    problems: list[str]

    @property
    def level(self) -> Level:
        """A damaged model is worth a warning."""
        return "info" if self.intact else "warning"

    def message(self) -> str:
        """The text of the event's log line."""
        return "Model verified: intact." if self.intact else f"Model damaged: {'; '.join(self.problems)}."


ModelEvent = ModelRegistered | ModelEnabled | ModelDisabled | ModelVerified
"""Every event of a model's stream."""


class KeyCreated(DomainEvent, frozen=True, kw_only=True):
    """An API key was made for the stream's tenant; the key itself is kept nowhere.

    digest: SHA-256 of the key, lower-case hex.
    """

    code: ClassVar[str] = "key.created"
    name: str
    scopes: list[Scope]
    digest: str

    def message(self) -> str:
        """The text of the event's log line."""
        return f"API key {self.name} created for {', '.join(self.scopes)}."


class KeyRevoked(DomainEvent, frozen=True, kw_only=True):
    """The key opens nothing any more."""

    code: ClassVar[str] = "key.revoked"

    def message(self) -> str:
        """The text of the event's log line."""
        return "API key revoked."


KeyEvent = KeyCreated | KeyRevoked
"""Every event of a key's stream."""


class OutboxPurged(DomainEvent, frozen=True, kw_only=True):
    """The waiting commands were thrown away. commands: how many, by queue."""

    code: ClassVar[str] = "outbox.purged"
    commands: dict[str, int]

    @property
    def level(self) -> Level:
        """Pending commands wait for a rebuild."""
        return "warning"

    def message(self) -> str:
        """The text of the event's log line."""
        return f"Outbox purged of {sum(self.commands.values())} command(s)."


class OutboxRebuilt(DomainEvent, frozen=True, kw_only=True):
    """Pending commands that no queue held were sent again. commands: how many, by queue."""

    code: ClassVar[str] = "outbox.rebuilt"
    commands: dict[str, int]

    def message(self) -> str:
        """The text of the event's log line."""
        return f"Outbox rebuilt: {sum(self.commands.values())} command(s) sent again."


OutboxEvent = OutboxPurged | OutboxRebuilt
"""Every event of the outbox's own stream."""


class AnchoredEnd(msgspec.Struct, frozen=True, kw_only=True):
    """Where a partition ended. chain: lower-case hex; empty where position is 0, of a partition without events."""

    partition: int
    position: int
    chain: str


class Statement(msgspec.Struct, frozen=True, kw_only=True):
    """What an anchor says of a log. public_key: of its signer, 32 bytes in lower-case hex."""

    format: Literal["dreamforge-anchor/1"] = "dreamforge-anchor/1"
    log_id: UUID
    signed_at: datetime
    ends: list[AnchoredEnd]
    public_key: str


class Anchor(Statement, frozen=True, kw_only=True):
    """A statement with its signature, 64 bytes in lower-case hex."""

    signature: str


class AnchorSigned(DomainEvent, frozen=True, kw_only=True):
    """The heads of all partitions were signed."""

    code: ClassVar[str] = "anchor.signed"
    anchor: Anchor

    def message(self) -> str:
        """The text of the event's log line."""
        events = sum(end.position for end in self.anchor.ends)
        return f"Anchor of {events} event(s) signed by {self.anchor.public_key[:16]}…."


class NewEvent(msgspec.Struct, frozen=True, kw_only=True):
    """An event about to be appended. `ts` is the appender's clock, UTC."""

    event_id: UUID
    ts: datetime
    body: DomainEvent
    meta: Meta = Meta()
    private: Private | None = None


class EventRow(msgspec.Struct, frozen=True, kw_only=True):
    """The parts of a stored event that its meaning depends on, its texts verbatim; `codec` decodes them."""

    stream_id: UUID
    tenant: str
    version: int
    code: str
    schema_version: int
    ts: datetime
    data: str
    meta: str
    private: str | None


class RecordedEvent(EventRow, frozen=True, kw_only=True):
    """A whole event of the log."""

    partition: int
    position: int
    category: str
    event_id: UUID
    recorded_at: datetime
    private_digest: bytes | None
    hash: bytes
    chain: bytes


class DecodedEvent(msgspec.Struct, frozen=True, kw_only=True):
    """An event decoded, as folds see it. body: None for one that this release does not know."""

    stream_id: UUID
    tenant: str
    version: int
    ts: datetime
    body: DomainEvent | None
    meta: Meta
    private: Private
