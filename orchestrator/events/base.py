"""What all events share: where they came from, personal text, and their log line. Pure."""

from datetime import datetime
from typing import ClassVar, Literal, get_args
from uuid import UUID

import msgspec

Category = Literal["job", "model", "key", "outbox", "anchor"]


Level = Literal["info", "warning", "error"]


class PersonalText(msgspec.Struct, frozen=True, kw_only=True):
    """Personal text of a job: what erasure takes away. All fields are None after it.

    request_id, traceparent: as the client sent them with the request that caused the event.
    """

    prompt: str | None = None
    negative_prompt: str | None = None
    metadata: dict[str, str] | None = None
    request_id: str | None = None
    traceparent: str | None = None


PrivateField = Literal["prompt", "negative_prompt", "metadata"]


PRIVATE_FIELDS: tuple[PrivateField, ...] = get_args(PrivateField)


class Meta(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Where an event came from: the request that caused it, whose API key it bore, and the process that appended it.

    request_id: drawn here; in events of releases that had no `PersonalText.request_id`, the client's where it sent one.
    traceparent: of those releases alone.
    """

    request_id: str | None = None
    traceparent: str | None = None
    actor: str | None = None
    key_id: UUID | None = None


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


class DecodedEvent(msgspec.Struct, frozen=True, kw_only=True):
    """An event decoded, as folds see it. body: None for one that this release does not know."""

    stream_id: UUID
    tenant: str
    version: int
    ts: datetime
    body: DomainEvent | None
    meta: Meta
    private: PersonalText
