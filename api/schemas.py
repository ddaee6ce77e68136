"""The shape of every JSON answer, as types; the OpenAPI document is made from them. Pure.

Documented fields are always present, null where unknown; `details` of an error, `per_step` and `proof` alone may be
missing.
"""

from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints
from uuid import UUID

import msgspec
from msgspec import Meta

from orchestrator.events import ErrorCode, Level, Status
from orchestrator.parameters import ImageFormat
from orchestrator.step_kinds import STEP_KINDS

Timestamp = Annotated[
    str,
    Meta(
        description="RFC 3339, UTC, six fractional digits.",
        examples=["2026-01-02T12:00:00.000000Z"],
        extra_json_schema={"format": "date-time"},
    ),
]
Sha256 = Annotated[str, Meta(pattern="^[0-9a-f]{64}$", description="Lower-case hex.")]

Digest = Annotated[bytes, Meta(description="SHA-256, in base64 (RFC 4648, section 4).")]


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What all answers have in common: they are values."""


class Service(Answer, frozen=True, kw_only=True):
    """Who answers."""

    service: Literal["dream-forge"] = "dream-forge"
    version: Literal["v1"] = "v1"


class Links(Answer, frozen=True, kw_only=True):
    """Where the rest of a job is to be found, as paths."""

    this: str = msgspec.field(name="self")
    artifacts: str
    progress: str
    stream: str
    events: str


class JobStub(Answer, frozen=True, kw_only=True):
    """A job in few words."""

    id: UUID
    status: Status
    type: Literal["generate"]
    created_at: Timestamp
    links: Links


class StreamToken(Answer, frozen=True, kw_only=True):
    """What opens one job's stream, as `?access_token=`, until it expires."""

    token: str
    expires_at: Timestamp


class JobAnswer(Answer, frozen=True, kw_only=True):
    """What submitting, cancelling and retrying a job answer."""

    job: JobStub


if TYPE_CHECKING:
    StepName = str
    JobParams = Answer
else:
    StepName = Literal[tuple(STEP_KINDS)]

    def _answer(name: str, meaning: str, members: dict[str, Any]) -> type[Answer]:
        return msgspec.defstruct(
            name, members.items(), bases=(Answer,), namespace={"__doc__": meaning}, frozen=True, kw_only=True
        )

    _recorded = {name: kind.recorded_type for name, kind in STEP_KINDS.items()}
    _generate = get_type_hints(_recorded.pop("generate"))
    _prompts = {"type": Literal["generate"], "prompt": str | None, "negative_prompt": str | None}
    _chain = _answer("ChainParams", "What follows generate.", _recorded)
    JobParams = _answer(
        "JobParams",
        "The request, normalised: defaults filled, the base seed drawn. Prompts are null after their erasure.",
        _prompts | _generate | {"chain": _chain | None},
    )


class Step(Answer, frozen=True, kw_only=True):
    """One step of a job. metadata: what the step was given, and which engine it used."""

    id: UUID
    name: StepName
    status: Status
    attempt: int
    started_at: Timestamp | None
    finished_at: Timestamp | None
    metadata: dict[str, Any]


class Summary(Answer, frozen=True, kw_only=True):
    """How many images the job is to have, and how many its last step has written."""

    count: int
    completed: int


class Job(Answer, frozen=True, kw_only=True):
    """One job with its steps, in order. version: of its history, as in ETag.

    params: null for a job that was set aside since its very first event can't be read; it has no steps then.
    """

    id: UUID
    type: Literal["generate"]
    status: Status
    created_at: Timestamp
    updated_at: Timestamp
    version: int
    params: JobParams | None
    metadata: dict[str, str]
    steps: list[Step]
    summary: Summary
    error_code: ErrorCode | None
    error_message: str | None
    links: Links


class JobListItem(Answer, frozen=True, kw_only=True):
    """A job as the list shows it. prompt: null if it was erased."""

    id: UUID
    type: Literal["generate"]
    status: Status
    created_at: Timestamp
    updated_at: Timestamp
    prompt: str | None
    summary: Summary


class JobList(Answer, frozen=True, kw_only=True):
    """A page of jobs, the newest first. next_cursor: null on the last page."""

    jobs: list[JobListItem]
    next_cursor: str | None


class Artifact(Answer, frozen=True, kw_only=True):
    """One image. url: a presigned GET, valid until expires_at."""

    id: UUID
    step: StepName
    format: ImageFormat
    width: int
    height: int
    seed: int
    item_index: int
    s3_key: str
    bytes: int
    sha256: Sha256
    url: str
    expires_at: Timestamp


class ArtifactList(Answer, frozen=True, kw_only=True):
    """A job's images, by step, then index."""

    artifacts: list[Artifact]


class ArtifactPlace(Answer, frozen=True, kw_only=True):
    """Where an image's bytes are. url: a presigned GET, valid until expires_at."""

    url: str
    expires_at: Timestamp


class RecordedEvent(Answer, frozen=True, kw_only=True):
    """One event as the log holds it. data, meta: the JSON texts to the letter, as `hash` covers them."""

    version: int
    event_id: UUID
    code: str
    ts: Timestamp
    level: Level
    step: str | None
    data: str
    meta: str
    hash: Sha256


class Proof(Answer, frozen=True, kw_only=True):
    """What an event's hashes need beside the event, under the names and in the forms of an exported bundle.

    private_digest: null where there never was private text. previous_hash: of the stream's version before,
    previous_chain: of the partition's position before; null where there is no such event.
    """

    stream_id: UUID
    category: str
    tenant: str
    schema_version: int
    partition: int
    position: int
    recorded_at: Timestamp
    private_digest: Digest | None
    hash: Digest
    chain: Digest
    previous_hash: Digest | None
    previous_chain: Digest | None


class HistoryEvent(RecordedEvent, frozen=True, kw_only=True):
    """One event of a job's history. data, meta: the JSON texts to the letter, as `hash` covers them."""

    proof: Proof | msgspec.UnsetType = msgspec.UNSET


class History(Answer, frozen=True, kw_only=True):
    """A page of a job's history, the oldest first. next_after_version: null on the last page."""

    events: list[HistoryEvent]
    next_after_version: int | None
    has_more: bool


class LogEvent(RecordedEvent, frozen=True, kw_only=True):
    """One event of the whole log. stream: the job's or model's id."""

    stream: UUID
    category: str


class LogPage(Answer, frozen=True, kw_only=True):
    """A page of the whole log. next_cursor: where to go on, now or later, when has_more is false."""

    events: list[LogEvent]
    next_cursor: str
    has_more: bool


class LogLine(Answer, frozen=True, kw_only=True):
    """A line of a job's log: these members, and those of the event's own data."""

    ts: Timestamp
    level: Level
    code: str
    message: str
    job_id: UUID
    step_id: UUID | msgspec.UnsetType = msgspec.UNSET
    step: StepName | msgspec.UnsetType = msgspec.UNSET
    item_index: int | msgspec.UnsetType | None = msgspec.UNSET
    seed: int | msgspec.UnsetType = msgspec.UNSET
    error_code: ErrorCode | msgspec.UnsetType | None = msgspec.UNSET


class ErrorDetail(Answer, frozen=True, kw_only=True, omit_defaults=True):
    """An error, but for its id. details: names the field that is wrong, where there is one."""

    code: str
    message: str
    details: dict[str, Any] | None = None


class Error(ErrorDetail, frozen=True, kw_only=True, omit_defaults=True):
    """The shape of every error. detail: the same once more, for clients of the old service (deprecated)."""

    correlation_id: str
    detail: ErrorDetail


class Liveness(Answer, frozen=True, kw_only=True):
    """The process answers. ts: Unix time in seconds."""

    status: Literal["ok"] = "ok"
    ts: int


class Readiness(Answer, frozen=True, kw_only=True):
    """What the process needs, by name: `ok`, or why it is not."""

    status: Literal["ready", "unavailable"]
    checks: dict[str, str]
