"""Events as the store keeps them: their texts verbatim. What they mean, the application's codec knows."""

from datetime import datetime
from uuid import UUID

import msgspec


class NewEvent(msgspec.Struct, frozen=True, kw_only=True):
    """An event about to be appended.

    ts: the appender's clock, UTC. data, meta: JSON texts, stored and hashed to the letter. private: text that lies
    outside the hash, and can be erased.
    """

    event_id: UUID
    code: str
    schema_version: int
    ts: datetime
    data: str
    meta: str
    private: str | None = None


class EventRow(msgspec.Struct, frozen=True, kw_only=True):
    """The parts of a stored event that its meaning depends on."""

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
