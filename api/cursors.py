"""The opaque cursors of clients. Pure. Every decoder raises ValueError for a text that its encoder did not write."""

import binascii
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from uuid import UUID

import msgspec

_UNIX_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_CURSOR_FORMAT_BYTE = b"\x01"
_CHAIN_PREFIX_BYTES = 6


class JobsCursor(msgspec.Struct, frozen=True):
    """The last job of a page of jobs, the newest first."""

    created_at: datetime
    job_id: UUID

    def encode(self) -> str:
        """The cursor as text."""
        micros = (self.created_at - _UNIX_EPOCH) // timedelta(microseconds=1)
        return _to_base64url(micros.to_bytes(8, "big", signed=True) + self.job_id.bytes)

    @classmethod
    def decode(cls, text: str) -> "JobsCursor":
        """The cursor of a text."""
        raw = _from_base64url(text)
        if len(raw) != 24:
            raise ValueError("a cursor of this list has 24 bytes")
        try:
            created_at = _UNIX_EPOCH + timedelta(microseconds=int.from_bytes(raw[:8], "big", signed=True))
        except OverflowError as error:
            raise ValueError(str(error)) from None
        return cls(created_at, UUID(bytes=raw[8:]))


class LogMark(msgspec.Struct, frozen=True):
    """The newest event of a partition that a client saw. chain_prefix: first bytes of its chain hash; empty at 0."""

    position: int
    chain_prefix: bytes

    @classmethod
    def of_event(cls, position: int, chain: bytes) -> "LogMark":
        """The mark of an event."""
        return cls(position, chain[:_CHAIN_PREFIX_BYTES])

    def matches_chain(self, chain: bytes | None) -> bool:
        """Whether the event that the client has seen has this chain hash. chain: of the event now at this position."""
        return self.position == 0 or (chain is not None and chain.startswith(self.chain_prefix))


class LogCursor:
    """A client's place in the whole log: the log's id, and a mark for each partition.

    The chain prefixes detect a log that was restored from a backup, where other events have the same positions.
    """

    def __init__(self, log_id: UUID, marks: Mapping[int, LogMark]) -> None:
        self.log_id = log_id
        self.marks = dict(marks)

    @property
    def positions(self) -> dict[int, int]:
        """The position in each partition."""
        return {partition: mark.position for partition, mark in self.marks.items()}

    def encode(self) -> str:
        """The cursor as text."""
        parts = [_CURSOR_FORMAT_BYTE, self.log_id.bytes]
        for partition in range(len(self.marks)):
            mark = self.marks[partition]
            parts += [_encode_varint(mark.position), mark.chain_prefix]
        return _to_base64url(b"".join(parts))

    @classmethod
    def decode(cls, text: str) -> "LogCursor":
        """The cursor of a text."""
        raw = _from_base64url(text)
        if raw[:1] != _CURSOR_FORMAT_BYTE or len(raw) < 17:
            raise ValueError("no cursor of the log")
        marks: list[LogMark] = []
        at = 17
        while at < len(raw):
            position, at = _decode_varint(raw, at)
            link = raw[at : at + _CHAIN_PREFIX_BYTES] if position else b""
            at += len(link)
            if position and len(link) < _CHAIN_PREFIX_BYTES:
                raise ValueError("cut off")
            marks.append(LogMark(position, link))
        return cls(UUID(bytes=raw[1:17]), dict(enumerate(marks)))


def _to_base64url(raw: bytes) -> str:
    return urlsafe_b64encode(raw).rstrip(b"=").decode()


def _from_base64url(text: str) -> bytes:
    try:
        raw = urlsafe_b64decode(text.encode("ascii") + b"=" * (-len(text) % 4))
    except (UnicodeEncodeError, binascii.Error) as error:
        raise ValueError(str(error)) from None
    if _to_base64url(raw) != text:
        raise ValueError("not in the form in which cursors are written")
    return raw


def _encode_varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _decode_varint(raw: bytes, offset: int) -> tuple[int, int]:
    number = shift = 0
    while offset < len(raw) and shift < 63:
        byte = raw[offset]
        number |= (byte & 0x7F) << shift
        offset += 1
        if byte < 0x80:
            return number, offset
        shift += 7
    raise ValueError("cut off")
