"""Histories as a file that proves itself with no database. Pure.

One JSON object a line: a header, the events, an end. Each line bears a seal, the SHA-256 of its number (eight bytes,
big-endian) and its content, so that a damaged line is named; the events bear their chains, by which `Verifier` tells a
forged one.

    {"seal":"9f86…","header":{"format":"dreamforge-bundle/1", …}}
    {"seal":"60d2…","event":{"stream_id":"…", …}}
    {"seal":"2c62…","end":{"events":17}}

Bytes are in base64 (RFC 4648, section 4); `data`, `meta` and `private` are the texts that were hashed.
"""

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from hashlib import sha256
from typing import Literal
from uuid import UUID

import msgspec
from msgspec.structs import replace

from eventstore.integrity.anchors import Anchor, find_violations
from eventstore.integrity.verifier import (
    NO_VOCABULARY,
    AuditEvent,
    IntegrityViolation,
    LogIdentity,
    Verifier,
    Vocabulary,
)


class BundleHeader(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a bundle holds: one stream's history, or all that was recorded since a moment.

    private: is personal text in it?
    """

    format: Literal["dreamforge-bundle/1"] = "dreamforge-bundle/1"
    log: LogIdentity
    exported_at: datetime
    stream: UUID | None = msgspec.field(name="job")  # as dreamforge-bundle/1 calls it
    since: datetime | None
    private: bool


class BundleEnd(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The last line: how many events came before it."""

    events: int


class _BundleLine(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    seal: str
    header: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    event: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    end: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class _BadLine(Exception):
    """What is wrong with a line."""


class BundleFlaw(msgspec.Struct, frozen=True, kw_only=True):
    """What is wrong with a bundle, and in which line, from 1 on. flaw: of the event that stands there."""

    line: int
    problem: str
    flaw: IntegrityViolation | None = None

    def __str__(self) -> str:
        """The line and the problem."""
        return f"line {self.line}: {self.problem}"


class BundleReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a bundle is, and what is wrong with it. header: None where it could not be read.

    vouched: events that an anchor saw, by the chains up to the last one that it names.
    """

    header: BundleHeader | None
    events: int
    vouched: int
    flaws: list[BundleFlaw]


class BundleWriter:
    """Makes the lines of a bundle, each with its newline: `header_line`, an `event_line` for each, `end_line`."""

    def __init__(self, header: BundleHeader) -> None:
        self._header = header
        self.events = 0

    def header_line(self) -> bytes:
        """The header's line."""
        return _sealed_line(1, "header", msgspec.json.encode(self._header))

    def event_line(self, event: AuditEvent) -> bytes:
        """The line of the next event, without its personal text unless the header says otherwise."""
        self.events += 1
        shown = event if self._header.private else replace(event, private=None, private_salt=None)
        return _sealed_line(self.events + 1, "event", msgspec.json.encode(shown))

    def end_line(self) -> bytes:
        """The last line."""
        return _sealed_line(self.events + 2, "end", msgspec.json.encode(BundleEnd(self.events)))


def verify_bundle(
    lines: Iterable[bytes], anchors: Sequence[Anchor] = (), vocabulary: Vocabulary = NO_VOCABULARY
) -> BundleReport:
    """Read a bundle's lines, each with its newline, and tell what is wrong, by itself and by anchors that were checked.

    Once a line is damaged only the seals of those behind it are looked at: what it held can't be known. An anchor
    vouches for the events that it saw and the bundle holds. vocabulary: as of `Verifier`. Raises `BadAnchor`
    for one of another log.
    """
    reader = _BundleReader(anchors, vocabulary)
    for line in lines:
        reader.read_line(line)
    return reader.report()


def read_events(lines: Iterable[bytes]) -> Iterator[AuditEvent]:
    """The events of a bundle that was verified."""
    for number, line in enumerate(lines, 1):
        kind, content = _unseal(number, line)
        if kind == "event":
            yield msgspec.json.decode(content, type=AuditEvent)


class _BundleReader:
    """Follows a bundle line by line."""

    def __init__(self, anchors: Sequence[Anchor], vocabulary: Vocabulary) -> None:
        self._anchors = anchors
        self._vocabulary = vocabulary
        self._anchored = {(end.partition, end.position) for anchor in anchors for end in anchor.ends}
        self._seen: dict[tuple[int, int], bytes] = {}
        self._lines = 0
        self._header: BundleHeader | None = None
        self._verifier: Verifier | None = None
        self._line_of: dict[tuple[int, int], int] = {}
        self._hashes: dict[UUID, tuple[int, bytes]] = {}
        self._chains: dict[int, tuple[int, bytes]] = {}
        self._end: BundleEnd | None = None
        self._flaws: list[BundleFlaw] = []

    def read_line(self, text: bytes) -> None:
        """Read the next line; after a damaged one, its seal alone."""
        self._lines += 1
        try:
            kind, content = _unseal(self._lines, text)
            if not self._flaws:
                self._read_content(kind, content)
        except _BadLine as bad:
            self._add_problem(str(bad))

    def report(self) -> BundleReport:
        """What there is to say, now that no line is left."""
        self._add_violations(self._verifier.take_open_violations() if self._verifier else [])
        if self._end is None and not self._flaws:
            self._lines += 1
            self._add_problem("is missing: the bundle has no end, so it was cut off")
        if self._header is not None and not self._flaws:
            for anchor in self._anchors:
                self._check_against_anchor(anchor, self._header)
        return BundleReport(
            header=self._header,
            events=len(self._line_of),
            vouched=0 if self._flaws else self._count_vouched(),
            flaws=self._flaws,
        )

    def _count_vouched(self) -> int:
        # A bundle holds one stream, or partitions without a gap: each event leads to all before it.
        last_anchored_position: dict[int, int] = {}
        for partition, position in self._seen:
            last_anchored_position[partition] = max(position, last_anchored_position.get(partition, 0))
        return sum(position <= last_anchored_position.get(partition, 0) for partition, position in self._line_of)

    def _check_against_anchor(self, anchor: Anchor, header: BundleHeader) -> None:
        """An anchored event that the bundle should hold is one between those that it does, or of a tail it had then."""
        complete = header.stream is None and header.exported_at >= anchor.signed_at
        for flaw in find_violations(anchor, header.log.log_id, self._seen):
            location = flaw.partition, flaw.position
            last, _ = self._chains.get(flaw.partition, (0, b""))
            if location in self._line_of or (complete and flaw.position > last > 0):
                line = self._line_of.get(location, self._lines)
                self._flaws.append(BundleFlaw(line=line, problem=str(flaw), flaw=flaw))

    def _read_content(self, kind: str, content: bytes) -> None:
        if (kind == "header") != (self._lines == 1):
            raise _BadLine("the header is the first line, and no other is")
        if self._end is not None:
            raise _BadLine("comes after the end")
        try:
            match kind:
                case "header":
                    self._header = msgspec.json.decode(content, type=BundleHeader)
                    self._verifier = Verifier(
                        self._header.log, whole=self._header.stream is None, vocabulary=self._vocabulary
                    )
                case "event":
                    self._check_event(msgspec.json.decode(content, type=AuditEvent))
                case _:
                    self._end = msgspec.json.decode(content, type=BundleEnd)
                    if self._end.events != len(self._line_of):
                        raise _BadLine(f"the end tells of {self._end.events} events, and {len(self._line_of)} are here")
        except msgspec.MsgspecError as error:
            raise _BadLine(f"its {kind} can't be read: {error}") from None
        except (OverflowError, TypeError):
            raise _BadLine(f"its {kind} holds a number, or a time without an offset, that no log holds") from None

    def _check_event(self, event: AuditEvent) -> None:
        place = event.partition, event.position
        self._line_of[place] = self._lines
        if self._header is not None and self._header.stream not in {None, event.stream_id}:
            raise _BadLine(f"is of {event.stream_id}, and the bundle of {self._header.stream} alone")
        # An event is judged by the links that it brings along: they must be those of the lines before.
        version, link = self._hashes.get(event.stream_id, (0, b""))
        if version and version == event.version - 1 and link != event.previous_hash:
            raise _BadLine("previous_hash is not the hash of the stream's event before")
        position, chain = self._chains.get(event.partition, (0, b""))
        if position and position == event.position - 1 and chain != event.previous_chain:
            raise _BadLine("previous_chain is not the chain of the partition's event before")
        self._hashes[event.stream_id] = event.version, event.hash
        self._chains[event.partition] = event.position, event.chain
        if place in self._anchored:
            self._seen[place] = event.chain
        if self._verifier is not None:
            self._add_violations(self._verifier.check_event(event))

    def _add_violations(self, flaws: Iterable[IntegrityViolation]) -> None:
        for flaw in flaws:
            line = self._line_of[flaw.partition, flaw.position]
            self._flaws.append(BundleFlaw(line=line, problem=f"{flaw.field}: {flaw.problem}", flaw=flaw))

    def _add_problem(self, problem: str) -> None:
        self._flaws.append(BundleFlaw(line=self._lines, problem=problem))


def _sealed_line(number: int, kind: str, content: bytes) -> bytes:
    seal = sha256(number.to_bytes(8, "big") + content).hexdigest()
    return b'{"seal":"%b","%b":%b}\n' % (seal.encode(), kind.encode(), content)


def _unseal(number: int, text: bytes) -> tuple[str, bytes]:
    """The kind of a line and what it holds, if its seal is whole."""
    if not text.endswith(b"\n"):
        raise _BadLine("does not end as a line does: it was cut off")
    try:
        line = msgspec.json.decode(text, type=_BundleLine)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise _BadLine(f"is no line of a bundle: {error}") from None
    parts = {kind: raw for kind in ("header", "event", "end") if (raw := getattr(line, kind)) is not msgspec.UNSET}
    if len(parts) != 1:
        raise _BadLine("is no line of a bundle: it must hold one of header, event and end")
    [(kind, raw)] = parts.items()
    # The whole text is compared, so that not even a blank can slip in.
    if text != _sealed_line(number, kind, bytes(raw)):
        raise _BadLine(f"the seal is not that of this {kind}")
    return kind, bytes(raw)
