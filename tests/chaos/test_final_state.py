"""The campaigns' judge sees every kind of damage: else its silence would mean nothing."""

from collections.abc import Callable, Sequence

import pytest
from msgspec.structs import replace

from eventstore.events import RecordedEvent
from eventstore.ids import new_id
from eventstore.integrity.chain import STREAM_GENESIS, chain_genesis, event_chain, event_hash, partition_of
from orchestrator import codec
from orchestrator.events import ArtifactWritten, DecodedEvent, DomainEvent, JobFinish, StepFinish
from tests.chaos.final_state import CHECKS, FinalState, Job, folded
from tests.http.conftest import succeeded

LOG_ID = new_id()


def link(history: Sequence[DecodedEvent]) -> list[RecordedEvent]:
    """The events of a partition that has one stream, with their hashes and chains."""
    partition = partition_of(history[0].stream_id, 8)
    events: list[RecordedEvent] = []
    stream, chain = STREAM_GENESIS, chain_genesis(LOG_ID, partition)
    for event in history:
        assert event.body is not None
        bare = RecordedEvent(
            stream_id=event.stream_id,
            tenant=event.tenant,
            version=event.version,
            code=event.body.code,
            schema_version=event.body.schema_version,
            ts=event.ts,
            data=codec.encode(event.body),
            meta=codec.encode(event.meta),
            private=None,
            partition=partition,
            position=event.version,
            category="job",
            event_id=new_id(),
            recorded_at=event.ts,
            private_digest=None,
            hash=b"",
            chain=b"",
        )
        hashed = replace(bare, hash=event_hash(stream, bare))
        events.append(replace(hashed, chain=event_chain(chain, hashed)))
        stream, chain = events[-1].hash, events[-1].chain
    return events


def sound() -> FinalState:
    """What one job leaves behind that had no trouble."""
    history = succeeded()
    events = link(history.events)
    written = [decoded.body for decoded in history.events if isinstance(decoded.body, ArtifactWritten)]
    seen = folded(history.events)
    assert seen is not None
    return FinalState(
        acknowledged={history.job_id},
        keys=0,
        log_id=LOG_ID,
        events={events[0].partition: events},
        jobs={history.job_id: Job(history.job_id, history.events, seen)},
        rows={history.job_id: seen},
        row_counts=(len(seen.steps), len(seen.artifacts)),
        commands=[],
        objects={one.s3_key: (one.bytes, one.sha256) for one in written},
    )


def job_of(found: FinalState) -> Job:
    """Its one job."""
    [job] = found.jobs.values()
    return job


def with_events_of_the_job(found: FinalState, events: Sequence[DecodedEvent]) -> FinalState:
    """With another history of the job."""
    job = job_of(found)
    return replace(found, jobs={job.job_id: replace(job, events=events)})


def without_last(found: FinalState, kind: type[DomainEvent]) -> FinalState:
    """Without the last event of a kind."""
    events = job_of(found).events
    last = max(n for n, one in enumerate(events) if isinstance(one.body, kind))
    return with_events_of_the_job(found, [*events[:last], *events[last + 1 :]])


def with_another(found: FinalState, kind: type[DomainEvent]) -> FinalState:
    """With an event of a kind twice."""
    events = job_of(found).events
    return with_events_of_the_job(found, [*events, next(one for one in events if isinstance(one.body, kind))])


def with_events(found: FinalState, change: Callable[[list[RecordedEvent]], list[RecordedEvent]]) -> FinalState:
    """With other events in the log."""
    return replace(found, events={partition: change(list(events)) for partition, events in found.events.items()})


def unfinished(found: FinalState) -> FinalState:
    """With a job that has not ended."""
    events = [one for one in job_of(found).events if not isinstance(one.body, JobFinish)]
    job = job_of(found)
    return replace(found, jobs={job.job_id: Job(job.job_id, events, folded(events))})


def with_object(found: FinalState, key: str, value: tuple[int, str]) -> FinalState:
    """With another object under a key."""
    return replace(found, objects={**found.objects, key: value})


def stale(found: FinalState) -> FinalState:
    """With a row that is behind the log."""
    return replace(found, rows={job: replace(row, status="running") for job, row in found.rows.items()})


DAMAGES: dict[str, tuple[str, Callable[[FinalState], FinalState]]] = {
    "a job is lost": ("acknowledged", lambda found: replace(found, acknowledged={new_id()})),
    "a key made no job": ("acknowledged", lambda found: replace(found, keys=1)),
    "a job is open": ("terminal", unfinished),
    "a step ended twice": ("finish", lambda found: with_another(found, StepFinish)),
    "a step never ended": ("finish", lambda found: without_last(found, StepFinish)),
    "an item was written twice": ("artifact", lambda found: with_another(found, ArtifactWritten)),
    "an item is missing": ("artifact", lambda found: without_last(found, ArtifactWritten)),
    "an object is gone": ("object", lambda found: replace(found, objects={})),
    "an object was overwritten": ("object", lambda found: with_object(found, "generate/0", (10, "1" * 64))),
    "an object is nobody's": ("object", lambda found: with_object(found, f"x/{job_of(found).job_id}/y", (1, ""))),
    "a command is left": ("orphan", lambda found: replace(found, commands=["a command"])),
    "a sound job is set aside": ("quarantine", lambda found: replace(found, quarantined={new_id(): None})),
    "a poisoned job is not set aside": ("quarantine", lambda found: replace(found, poisoned={new_id()})),
    "an event was changed": (
        "chain",
        lambda found: with_events(found, lambda e: [*e[:2], replace(e[2], data="{}"), *e[3:]]),
    ),
    "an event was removed": ("chain", lambda found: with_events(found, lambda e: [*e[:2], *e[3:]])),
    "a position is missing": ("gapless", lambda found: with_events(found, lambda e: [*e[:2], *e[3:]])),
    "a version is missing": ("gapless", lambda found: without_last(found, ArtifactWritten)),
    "a row is stale": ("read model", stale),
    "a row is missing": ("read model", lambda found: replace(found, rows={})),
    "a row is nobody's": ("read model", lambda found: replace(found, row_counts=(3, 4))),
}


def test_nothing_is_wrong_where_nothing_is() -> None:
    found = sound()
    assert [sentence for check in CHECKS.values() for sentence in check(found)] == []


@pytest.mark.parametrize("damage", DAMAGES)
def test_each_damage_is_seen(damage: str) -> None:
    """Given one damage, then the check that is there for it says so."""
    check, spoil = DAMAGES[damage]
    assert CHECKS[check](spoil(sound())) != []


def test_every_check_was_seen_to_fail() -> None:
    assert {check for check, _ in DAMAGES.values()} == CHECKS.keys()
