"""The formulas of the hash chains, as any verifier would compute them, with no database. Pure.

The database computes the same in `store.sql` (`event_hash`, `event_chain`), under the partition's lock. Numbers are
big-endian; a timestamp is its microseconds since 1970-01-01 UTC in eight bytes.
"""

from datetime import UTC, datetime, timedelta
from hashlib import sha256
from uuid import UUID

from eventstore.events import RecordedEvent

_UNIX_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
STREAM_GENESIS = b""


def frame_field(name: str, value: bytes | None) -> bytes:
    """One field of an envelope: name and value, each behind its length in four bytes; -1 where there's no value."""
    label = name.encode()
    head = len(label).to_bytes(4, "big") + label
    if value is None:
        return head + (-1).to_bytes(4, "big", signed=True)
    return head + len(value).to_bytes(4, "big") + value


def encode_timestamp(moment: datetime) -> bytes:
    """A timestamp as it is hashed."""
    return ((moment - _UNIX_EPOCH) // timedelta(microseconds=1)).to_bytes(8, "big", signed=True)


def event_hash(previous: bytes, event: RecordedEvent) -> bytes:
    """The link of an event in its stream's chain; `previous` is the hash of the version before, empty for the first."""
    fields: tuple[tuple[str, bytes | None], ...] = (
        ("stream_id", event.stream_id.bytes),
        ("version", event.version.to_bytes(4, "big", signed=True)),
        ("category", event.category.encode()),
        ("tenant", event.tenant.encode()),
        ("event_id", event.event_id.bytes),
        ("code", event.code.encode()),
        ("schema_version", event.schema_version.to_bytes(2, "big", signed=True)),
        ("ts", encode_timestamp(event.ts)),
        ("data", event.data.encode()),
        ("meta", event.meta.encode()),
        ("private_digest", event.private_digest),
    )
    return sha256(previous + b"".join(frame_field(name, value) for name, value in fields)).digest()


def event_chain(previous: bytes, event: RecordedEvent) -> bytes:
    """The link of an event in its partition's chain; `previous` is the chain of the position before."""
    return sha256(
        previous + event.position.to_bytes(8, "big", signed=True) + encode_timestamp(event.recorded_at) + event.hash
    ).digest()


def chain_genesis(log_id: UUID, partition: int) -> bytes:
    """What the first event of a partition is chained to."""
    return sha256(b"dreamforge" + log_id.bytes + partition.to_bytes(2, "big", signed=True)).digest()


def partition_of(stream: UUID, partitions: int) -> int:
    """The partition of a stream: the low bits of its last byte, as `eventstore.partition_of` in the database."""
    return stream.bytes[-1] & (partitions - 1)
