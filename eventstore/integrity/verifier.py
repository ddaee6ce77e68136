"""Verifies events against both of their hash chains, and names what was changed. Pure.

    hash of version n - 1 ──┐                        ┌── chain of position p - 1
                            ▼                        ▼
                  envelope ─▶ hash ──────────────────▶ chain

What can be told from the events alone is told: any change to one, any gap, any order but the recorded one. What
can't: a tail that was cut off, and chains that somebody with the database computed anew. For those there are anchors.
"""

from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from uuid import UUID

import msgspec
from msgspec.structs import replace

from eventstore.events import RecordedEvent
from eventstore.integrity.chain import STREAM_GENESIS, chain_genesis, event_chain, event_hash, partition_of

Vocabulary = Mapping[str, Sequence[object]]
"""Values that columns may have, by name."""

NO_VOCABULARY: Vocabulary = {}


class AuditEvent(RecordedEvent, frozen=True, kw_only=True):
    """An event with all that its proof needs.

    private_salt: what the private text was hashed with; None where it was erased or left out. previous_hash: of the
    stream's version before, previous_chain: of the partition's position before; None where there is no such event.
    """

    private_salt: bytes | None
    previous_hash: bytes | None
    previous_chain: bytes | None


class IntegrityViolation(msgspec.Struct, frozen=True, kw_only=True):
    """Where a log is not what it was: the place, the field if it can be told, and a sentence for people."""

    partition: int
    position: int
    stream_id: UUID | None
    version: int | None
    field: str
    problem: str

    def __str__(self) -> str:
        """The place and the problem."""
        event = "" if self.stream_id is None else f" ({self.stream_id} version {self.version})"
        return f"partition {self.partition}, position {self.position}{event}: {self.field}: {self.problem}"


class LogIdentity(msgspec.Struct, frozen=True, kw_only=True):
    """Which log: its chains begin with its id."""

    log_id: UUID
    partitions: int


class Verifier:
    """Takes the events of some partitions, each partition's in the order of position, and answers what is wrong.

    whole: the events are all that the partitions hold from where they begin, so that a gap among the positions is a
    flaw. Otherwise they are one stream's, and a gap among its versions is. vocabulary: values that a column may have
    had, by its name: with them a changed one can be named.
    """

    def __init__(self, log: LogIdentity, *, whole: bool, vocabulary: Vocabulary = NO_VOCABULARY) -> None:
        self._log = log
        self._vocabulary = vocabulary
        self._whole = whole
        self._last: dict[int, AuditEvent] = {}
        self._version = 0
        # What a damaged event must have held, so that those behind it are not reported for its damage.
        self._hashes: dict[tuple[UUID, int], bytes] = {}
        self._chains: dict[tuple[int, int], bytes] = {}
        self._doubts: dict[int, tuple[IntegrityViolation, bytes]] = {}

    def check_event(self, event: AuditEvent) -> list[IntegrityViolation]:
        """What is wrong with the next event, and what its coming tells of the one before."""
        found = [
            *self._settle_doubt(event),
            *self._check_location(event),
            *self._check_links(event),
            *_check_private_text(event),
        ]
        self._last[event.partition] = event
        self._version = event.version
        return found

    def take_open_violations(self) -> list[IntegrityViolation]:
        """What was left open until more events came."""
        doubts, self._doubts = self._doubts, {}
        return [flaw for flaw, _ in doubts.values()]

    def _settle_doubt(self, event: AuditEvent) -> Iterator[IntegrityViolation]:
        """A chain that did not fit is settled by the event behind it, which was chained to what really stood there."""
        if event.partition not in self._doubts:
            return
        flaw, chain = self._doubts.pop(event.partition)
        before = self._last[event.partition]
        if event.position == before.position + 1 and event_chain(before.chain, event) == event.chain:
            yield replace(flaw, field="recorded_at", problem="was changed: the chain is that of another time")
        elif event.position == before.position + 1 and event_chain(chain, event) == event.chain:
            self._chains[event.partition, before.position] = chain
            yield replace(flaw, field="chain", problem="was changed: the next event is chained to another")
        else:
            yield flaw

    def _check_location(self, event: AuditEvent) -> Iterator[IntegrityViolation]:
        home = partition_of(event.stream_id, self._log.partitions)
        if event.partition != home:
            yield _flaw(event, "partition", f"the stream belongs to partition {home}")
        for field in ("position", "version"):
            if getattr(event, field) < 1:
                yield _flaw(event, field, "is below 1")
        last = self._last.get(event.partition)
        if last is not None and event.recorded_at < last.recorded_at:
            yield _flaw(event, "recorded_at", f"is earlier than that of position {last.position}")
        if self._whole and last is not None and event.position <= last.position:
            yield _flaw(event, "position", f"comes after position {last.position}")
        elif self._whole and last is not None and event.position > last.position + 1:
            yield _flaw(event, "position", _missing("position", last.position + 1, event.position - 1))
        elif event.position > 1 and event.previous_chain is None:
            first = 1 if self._whole else event.position - 1
            yield _flaw(event, "position", _missing("position", first, event.position - 1))
        if not self._whole and event.version != self._version + 1:
            yield _flaw(event, "version", f"comes after version {self._version}")
        elif event.version > 1 and event.previous_hash is None:
            yield _flaw(event, "version", _missing("version", event.version - 1, event.version - 1))

    def _check_links(self, event: AuditEvent) -> Iterator[IntegrityViolation]:
        """Hold an event against both chains; against none whose last link is missing."""
        before = self._hash_before(event)
        if before is None:
            return
        link = event_hash(before, event)
        chain = self._chain_before(event)
        if link != event.hash:
            if chain is not None and event_chain(chain, replace(event, hash=link)) == event.chain:
                self._hashes[event.stream_id, event.version] = link
                yield _flaw(event, "hash", "was changed: the chain is that of another hash, which fits the event")
                return
            yield _flaw(event, self._changed_field(event, before), "was changed: the hash is that of another content")
        if chain is not None and event_chain(chain, event) != event.chain:
            doubt = _flaw(event, "recorded_at or chain", "the chain does not follow from the position before")
            self._doubts[event.partition] = (doubt, event_chain(chain, event))

    def _changed_field(self, event: AuditEvent, previous: bytes) -> str:
        """The field that was changed, where putting back one of the few values that it can have had mends the hash."""
        few = {**self._vocabulary, "schema_version": range(1, 10), "private_digest": (None, _digest(event))}
        for field, values in few.items():
            if any(event_hash(previous, replace(event, **{field: value})) == event.hash for value in values):
                return field
        return "envelope (stream_id, version, tenant, event_id, ts, data or meta)"

    def _hash_before(self, event: AuditEvent) -> bytes | None:
        if event.version <= 1:
            return STREAM_GENESIS
        return self._hashes.get((event.stream_id, event.version - 1), event.previous_hash)

    def _chain_before(self, event: AuditEvent) -> bytes | None:
        if event.position == 1:
            return chain_genesis(self._log.log_id, event.partition)
        return self._chains.get((event.partition, event.position - 1), event.previous_chain)


def _check_private_text(event: AuditEvent) -> Iterator[IntegrityViolation]:
    """The private text lies outside the hash, but what it was hashed to lies inside."""
    if (event.private is None) != (event.private_salt is None):
        gone, held = ("private", "private_salt") if event.private is None else ("private_salt", "private")
        yield _flaw(event, gone, f"is missing, while {held} is there; erasure takes both")
    elif event.private is not None and _digest(event) != event.private_digest:
        yield _flaw(event, "private", "is not the text that was hashed")


def _flaw(event: AuditEvent, field: str, problem: str) -> IntegrityViolation:
    return IntegrityViolation(
        partition=event.partition,
        position=event.position,
        stream_id=event.stream_id,
        version=event.version,
        field=field,
        problem=problem,
    )


def _missing(name: str, first: int, last: int) -> str:
    gone = f"{name} {last} is" if first >= last else f"{name}s {first} to {last} are"
    return f"{gone} missing before it"


def _digest(event: AuditEvent) -> bytes:
    return sha256((event.private_salt or b"") + (event.private or "").encode()).digest()
