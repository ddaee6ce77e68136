"""States that are kept between turns: they follow the history of this log, and nothing else."""

from collections.abc import Sequence
from uuid import UUID

import pytest
from msgspec.structs import replace

from eventstore.events import RecordedEvent
from eventstore.log import Append, Batch, CheckpointMove
from orchestrator.events import DomainEvent, JobQuarantined, JobReleased, PersonalText
from orchestrator.process_manager import Orchestrator
from orchestrator.service import fold_history
from orchestrator.state_cache import StateCache
from tests.kit import History, Store, event

RELEASED = JobReleased(resume=True)


async def stored(store: Store, history: History) -> list[RecordedEvent]:
    """A history in the log."""
    private = PersonalText(prompt="a castle", traceparent="00-1-2-01")
    first, *others = history.events
    assert first.body is not None
    events = [event(first.body, private=private), *(event(one.body) for one in others if one.body is not None)]
    append = Append(stream=history.job_id, category="job", expected=0, events=tuple(events))
    await store.log.commit(Batch(appends=[append]))
    return await store.log.read_stream(history.job_id)


def kept(events: Sequence[RecordedEvent], count: int) -> StateCache:
    """A cache that holds the state after some events."""
    cache = StateCache()
    cache.put(fold_history(events[:count]), events[count - 1])
    return cache


async def upscale_commands(store: Store) -> int:
    """How many commands wait in the queue of the second step."""
    [row] = await store.database.read("select count(*) from pgmq.q_upscale")
    return int(row["count"])


async def test_a_state_is_found_for_the_event_that_follows_it_alone(store: Store) -> None:
    """Given the state after two events, then it is that before the third, and before none that another log holds."""
    events = await stored(store, History().started("generate").wrote("generate", 0))
    cache = kept(events, 2)
    found = cache.state_before(events[2])
    assert found == replace(fold_history(events[:2]), private=PersonalText(), traceparent=None)
    assert [cache.state_before(one) for one in events[:2]] == [None, None]
    assert cache.state_before(replace(events[2], data=events[2].data + " ")) is None
    other = replace(events[1], hash=events[0].hash)
    cache.put(fold_history(events[:2]), other)
    assert cache.state_before(events[2]) is None


async def test_finished_jobs_and_the_least_used_are_not_kept(store: Store) -> None:
    histories = [History().started("generate") for _ in range(3)]
    streams = [await stored(store, history) for history in histories]
    cache = StateCache(capacity=2)
    for events in streams:
        cache.put(fold_history(events[:1]), events[0])
    assert [cache.state_before(events[1]) is not None for events in streams] == [False, True, True]
    finished = replace(fold_history(streams[2][:1]), outcome="failed")
    cache.put(finished, streams[2][0])
    assert cache.state_before(streams[2][1]) is None


async def test_a_reaction_reads_the_history_where_the_state_is_of_another_log(store: Store) -> None:
    """Given a state that a failover has undone, with a cancel, then a reaction follows the history."""
    history = History().started("generate").wrote("generate", 0).finished("generate")
    events = await stored(store, history)
    orchestrator = Orchestrator(store.log, store.committer, "test")
    undone = replace(fold_history(events[:3]), cancel_pending=True)
    orchestrator._states.put(undone, replace(events[2], hash=events[0].hash))
    await orchestrator.handle(events[3:], [])
    assert await upscale_commands(store) >= 1


@pytest.mark.parametrize("marks", [(), (JobQuarantined(reader="runner", at_version=3, reason="Broken"), RELEASED)])
async def test_reactions_read_no_history_of_jobs_that_were_seen(store: Store, marks: Sequence[DomainEvent]) -> None:
    """Given a job's events in two turns, then the history is read only if a mark of a quarantine is among them."""
    read: list[UUID] = []
    read_streams = store.log.read_streams

    async def counted(streams: Sequence[UUID]) -> dict[UUID, list[RecordedEvent]]:
        read.extend(streams)
        return await read_streams(streams)

    store.log.read_streams = counted  # type: ignore[method-assign]
    history = History().started("generate").wrote("generate", 0).add(*marks).finished("generate")
    events = await stored(store, history)
    orchestrator = Orchestrator(store.log, store.committer, "test")
    await store.log.subscribe(orchestrator.name)
    for start, end in ((0, 2), (2, len(events))):
        move = CheckpointMove(
            subscription=orchestrator.name, partition=events[0].partition, start=start, end=events[end - 1].position
        )
        await orchestrator.handle(events[start:end], [move])
    assert read == ([history.job_id] if marks else [])
    assert await upscale_commands(store) >= 1
