"""A log in memory, with hashes computed as the database does, for tests that tamper with it."""

import random
from collections.abc import Iterable, Sequence
from datetime import timedelta
from hashlib import sha256
from uuid import UUID

import msgspec
from msgspec.structs import replace

from eventstore.integrity.chain import STREAM_GENESIS, chain_genesis, event_chain, event_hash, partition_of
from eventstore.integrity.verifier import AuditEvent, LogIdentity
from tests.kit import NOON

LOG = LogIdentity(log_id=UUID("018f0000-0000-7000-8000-0000000000ff"), partitions=2)
CODES = ("job.created", "step.start", "artifact.written", "step.finish", "job.finish")


def log(rng: random.Random, events: int, streams: int = 5) -> list[AuditEvent]:
    """A valid log of some streams in commit order. Some events have private text."""
    ids = [UUID(int=rng.getrandbits(128)) for _ in range(streams)]
    rows: list[AuditEvent] = []
    versions = dict.fromkeys(ids, 0)
    positions = dict.fromkeys(range(LOG.partitions), 0)
    for n in range(events):
        stream = rng.choice(ids)
        partition = partition_of(stream, LOG.partitions)
        versions[stream] += 1
        positions[partition] += 1
        private, salt = ('{"prompt":"a castle"}', rng.randbytes(16)) if rng.random() < 0.3 else (None, None)
        row = AuditEvent(
            partition=partition,
            position=positions[partition],
            stream_id=stream,
            version=versions[stream],
            category="job",
            tenant="default",
            event_id=UUID(int=rng.getrandbits(128)),
            code=rng.choice(CODES),
            schema_version=1,
            ts=NOON + timedelta(milliseconds=n),
            recorded_at=NOON + timedelta(milliseconds=n, microseconds=7),
            data=f'{{"attempt":{n}}}',
            meta='{"actor":"runner"}',
            private=private,
            private_salt=salt,
            private_digest=None if private is None or salt is None else sha256(salt + private.encode()).digest(),
            hash=b"",
            chain=b"",
            previous_hash=None,
            previous_chain=None,
        )
        rows.append(chained(row, rows))
    return rows


def chained(row: AuditEvent, before: Sequence[AuditEvent]) -> AuditEvent:
    """A row with the hashes that the database would compute after the other rows."""
    [row] = read([*before, row])[-1:]
    row = replace(row, hash=event_hash(row.previous_hash or STREAM_GENESIS, row))
    return replace(row, chain=event_chain(row.previous_chain or chain_genesis(LOG.log_id, row.partition), row))


def read(rows: Iterable[AuditEvent]) -> list[AuditEvent]:
    """Rows as `AuditReader` returns them: each with the hashes of the rows that now precede it."""
    table = list(rows)
    # Of two events with one version, the earlier counts: the database rejects the second.
    hashes = {(row.stream_id, row.version): row.hash for row in reversed(ordered(table))}
    chains = {(row.partition, row.position): row.chain for row in table}
    return [
        replace(
            row,
            previous_hash=hashes.get((row.stream_id, row.version - 1)),
            previous_chain=chains.get((row.partition, row.position - 1)),
        )
        for row in table
    ]


def ordered(rows: Iterable[AuditEvent]) -> list[AuditEvent]:
    """Rows by partition and position."""
    return sorted(rows, key=lambda row: (row.partition, row.position))


def ends(rows: Iterable[AuditEvent]) -> dict[int, tuple[int, bytes]]:
    """The end of each partition, for an anchor."""
    return {row.partition: (row.position, row.chain) for row in ordered(rows)}


def chains(rows: Iterable[AuditEvent]) -> dict[tuple[int, int], bytes]:
    """The chain hash at every position, to compare with an anchor."""
    return {(row.partition, row.position): row.chain for row in rows}


FIELDS = tuple(
    field.name for field in msgspec.structs.fields(AuditEvent) if field.name not in {"previous_hash", "previous_chain"}
)
"""All fields of a row."""
