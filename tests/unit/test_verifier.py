"""Any change to a stored history is found, where it stands; a sound one is never blamed."""

import os
import random
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec.structs import replace

from eventstore.integrity import anchors
from eventstore.integrity.verifier import AuditEvent, IntegrityViolation, Verifier
from orchestrator import codec
from tests import memory_log
from tests.kit import NOON

MUTATIONS = int(os.environ.get("DF_TEST_MUTATIONS", "10000"))
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def flaws(rows: Sequence[AuditEvent]) -> list[IntegrityViolation]:
    """What a verification of the whole log says of some rows."""
    verifier = Verifier(memory_log.LOG, whole=True, vocabulary=codec.COLUMN_VOCABULARY)
    found = [flaw for row in memory_log.read(memory_log.ordered(rows)) for flaw in verifier.check_event(row)]
    return found + verifier.take_open_violations()


def stream_flaws(rows: Sequence[AuditEvent], stream: UUID) -> list[IntegrityViolation]:
    """What a verification of one stream says."""
    verifier = Verifier(memory_log.LOG, whole=False, vocabulary=codec.COLUMN_VOCABULARY)
    own = sorted((row for row in memory_log.read(rows) if row.stream_id == stream), key=lambda row: row.version)
    return [flaw for row in own for flaw in verifier.check_event(row)] + verifier.take_open_violations()


def other(rng: random.Random, value: Any) -> Any:
    """Some other value of the same type, by as small a change as can be."""
    match value:
        case int():
            return value + rng.choice((-1, 1)) * rng.choice((1, 1, 2, 1000))
        case UUID():
            return UUID(int=value.int ^ 1 << rng.randrange(128))
        case datetime():
            return value + rng.choice((-1, 1)) * timedelta(microseconds=rng.choice((1, 1000, 10**9)))
        case bytes():
            index = rng.randrange(len(value))
            return value[:index] + bytes([value[index] ^ 1 << rng.randrange(8)]) + value[index + 1 :]
        case str():
            index = rng.randrange(len(value))
            return value[:index] + rng.choice([one for one in LETTERS if one != value[index]]) + value[index + 1 :]
        case _:
            return rng.choice((b"x", "x"))


def changed_field(rng: random.Random, rows: list[AuditEvent]) -> tuple[list[AuditEvent], str, list[AuditEvent]]:
    """One field of one row."""
    index = rng.randrange(len(rows))
    row = rows[index]
    field = rng.choice(memory_log.FIELDS)
    value = getattr(row, field)
    if value is None:
        new: Any = "x" if field == "private" else b"x"
    elif value is not None and rng.random() < 0.1 and field in {"private", "private_salt", "private_digest"}:
        new = None
    else:
        new = other(rng, value)
    forged = replace(row, **{field: new})
    return [*rows[:index], forged, *rows[index + 1 :]], field, [row, forged]


def truncated(rng: random.Random, rows: list[AuditEvent]) -> tuple[list[AuditEvent], str, list[AuditEvent]]:
    """The newest rows of a partition gone, without a trace but for the anchor."""
    partition = rng.choice(sorted({row.partition for row in rows}))
    own = [row for row in rows if row.partition == partition]
    cut = rng.randrange(1, min(4, len(own)) + 1)
    return [row for row in rows if row not in own[-cut:]], "truncated", own[-1:]


def rewritten(rng: random.Random, rows: list[AuditEvent]) -> tuple[list[AuditEvent], str, list[AuditEvent]]:
    """One row changed, and every hash and chain behind it computed anew, as whoever owns the database can."""
    index = rng.randrange(len(rows))
    forged = rows[:index]
    for row in [replace(rows[index], data='{"forged":true}'), *rows[index + 1 :]]:
        forged.append(memory_log.chained(row, forged))
    partition = rows[index].partition
    return forged, "rewritten", [[row for row in rows if row.partition == partition][-1]]


def removed(rng: random.Random, rows: list[AuditEvent]) -> tuple[list[AuditEvent], str, list[AuditEvent]]:
    """One row that is not the last of its partition: a tail can only be missed by an anchor."""
    ends = {row.partition: row for row in rows}
    row = rng.choice([row for row in rows if row is not ends[row.partition]])
    behind = next(one for one in rows if (one.partition, one.position) == (row.partition, row.position + 1))
    return [one for one in rows if one is not row], "removed", [row, behind]


def swapped(rng: random.Random, rows: list[AuditEvent]) -> tuple[list[AuditEvent], str, list[AuditEvent]]:
    """Two rows of a partition in each other's place."""
    partition = rng.choice([p for p in range(memory_log.LOG.partitions) if sum(row.partition == p for row in rows) > 1])
    one, two = rng.sample([row for row in rows if row.partition == partition], 2)
    places = {id(one): replace(one, position=two.position), id(two): replace(two, position=one.position)}
    return [places.get(id(row), row) for row in rows], "swapped", [one, two]


def inserted(rng: random.Random, rows: list[AuditEvent]) -> tuple[list[AuditEvent], str, list[AuditEvent]]:
    """A forged row, its hashes computed, in the place of another; those behind it move up."""
    model = rng.choice(rows)
    moved = [
        replace(row, position=row.position + 1)
        if row.partition == model.partition and row.position >= model.position
        else row
        for row in rows
    ]
    before = [row for row in rows if row.partition != model.partition or row.position < model.position]
    version = 1 + max((row.version for row in rows if row.stream_id == model.stream_id), default=0)
    forged = memory_log.chained(replace(model, event_id=UUID(int=rng.getrandbits(128)), version=version), before)
    return [*moved, forged], "inserted", [forged, model]


KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))
KINDS = (changed_field, changed_field, changed_field, changed_field, removed, swapped, inserted, truncated, rewritten)


def test_any_single_change_is_found_where_it_stands() -> None:
    """Given thousands of changes drawn at random, each to a sound log, then the first flaw is at the changed place."""
    rng = random.Random(20261123)
    rows: list[AuditEvent] = []
    for n in range(MUTATIONS):
        if n % 20 == 0:
            rows = memory_log.log(rng, rng.randrange(8, 24))
            anchor = anchors.sign_anchor(KEY, memory_log.LOG.log_id, memory_log.ends(rows), NOON)
        forged, what, touched = rng.choice(KINDS)(rng, rows)
        found = flaws(forged) + anchors.find_violations(anchor, memory_log.LOG.log_id, memory_log.chains(forged))
        places = {(row.partition, position) for row in touched for position in (row.position, row.position + 1)}
        assert found, (n, what, touched)
        assert (found[0].partition, found[0].position) in places, (n, what, touched, found)


def test_a_sound_log_is_never_blamed() -> None:
    """Nor its streams one by one, nor a part of it that begins anywhere."""
    rng = random.Random(4)
    for _ in range(300):
        rows = memory_log.log(rng, rng.randrange(1, 40), streams=rng.randrange(1, 8))
        assert flaws(rows) == []
        anchor = anchors.sign_anchor(
            KEY, memory_log.LOG.log_id, memory_log.ends(rows[: rng.randrange(len(rows))]), NOON
        )
        assert anchors.find_violations(anchor, memory_log.LOG.log_id, memory_log.chains(rows)) == []
        for stream in {row.stream_id for row in rows}:
            assert stream_flaws(rows, stream) == []
        verifier = Verifier(memory_log.LOG, whole=True, vocabulary=codec.COLUMN_VOCABULARY)
        later = [row for row in memory_log.read(memory_log.ordered(rows)) if row.position > 3]
        assert [flaw for row in later for flaw in verifier.check_event(row)] + verifier.take_open_violations() == []


NAMED = ["code", "category", "schema_version", "private_digest", "hash", "chain", "recorded_at", "private"]


@pytest.mark.parametrize("field", NAMED)
def test_the_field_is_named_where_it_can_be_told(field: str) -> None:
    """Given one changed field in the midst of a log, then the first flaw names the field, and all are in that place."""
    rng = random.Random(7)
    rows = memory_log.log(rng, 30)
    ends = {row.partition: row for row in rows}
    index = next(n for n, row in enumerate(rows) if row.private and row is not ends[row.partition] and row.position > 1)
    values = {"code": "job.finish" if rows[index].code != "job.finish" else "error", "category": "model"}
    new = values.get(field) or other(rng, getattr(rows[index], field))
    found = flaws([*rows[:index], replace(rows[index], **{field: new}), *rows[index + 1 :]])
    assert found[0].field == field
    assert {(flaw.partition, flaw.position) for flaw in found} == {(rows[index].partition, rows[index].position)}
    assert str(found[0]).startswith(f"partition {rows[index].partition}, position {rows[index].position} (")


def test_a_stream_tells_of_its_own_gap() -> None:
    """Given a stream without one of its versions, then its verification names the version."""
    rows = memory_log.log(random.Random(1), 30, streams=2)
    stream = rows[0].stream_id
    gone = next(row for row in rows if row.stream_id == stream and row.version == 3)
    found = stream_flaws([row for row in rows if row is not gone], stream)
    assert ("version", 4) in {(flaw.field, flaw.version) for flaw in found}


def test_erased_text_is_no_flaw() -> None:
    """Given private text and salt taken away together, then everything verifies."""
    rows = memory_log.log(random.Random(2), 30)
    assert flaws([replace(row, private=None, private_salt=None) for row in rows]) == []


def test_a_run_of_missing_events_is_named_from_end_to_end() -> None:
    """Given several rows gone, then one flaw tells which positions."""
    rows = memory_log.log(random.Random(3), 40)
    left = [row for row in rows if row.partition != 1 or row.position not in {3, 4, 5}]
    found = [flaw for flaw in flaws(left) if flaw.field == "position"]
    assert [str(flaw.problem) for flaw in found] == ["positions 3 to 5 are missing before it"]
