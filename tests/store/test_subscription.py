"""Subscriptions handle every event exactly once, whatever fails in between."""

import asyncio
import json
from collections.abc import Mapping, Sequence
from uuid import UUID

import msgspec
import pytest
from msgspec.structs import replace

from eventstore import subscription
from eventstore.committer import Transition
from eventstore.errors import EventRejected
from eventstore.events import RecordedEvent
from eventstore.ids import new_id
from eventstore.log import Append, Batch, CheckpointMove, CheckpointMoveOutcome, Send
from eventstore.outbox import Claim
from eventstore.subscription import Subscription
from eventstore.tailer import Tailer
from orchestrator import codec
from orchestrator.decisions import RecordItems, StaleAttempt, StartStep
from orchestrator.events import CancelRequested, StepFinish, StepStart
from orchestrator.process_manager import Orchestrator
from orchestrator.service import JobService
from orchestrator.step_command import StepCommand
from tests.kit import NOON, History, Store, connect, event, eventually, job_created, some_append, stream_in

CLAIM = Claim(
    queue="generate",
    msg_id=1,
    read_ct=1,
    enqueued_at=NOON,
    command=StepCommand(job_id=new_id(), step_id=new_id(), step="generate", version=1),
    expires_at_s=0.0,
)
"""A claim for runs whose message doesn't matter."""


class Recorder:
    """A handler that keeps what it handled, and moves the checkpoint with it."""

    def __init__(
        self, store: Store, seen: list[tuple[UUID, int]], name: str = "recorder", *, quiet: bool = False
    ) -> None:
        self.name = name
        self._store = store
        self._seen = seen
        self._quiet = quiet
        self.poison: UUID | None = None
        self.moves = 0
        self.turns = 0

    async def handle(
        self, events: Sequence[RecordedEvent], moves: Sequence[CheckpointMove]
    ) -> Mapping[int, CheckpointMoveOutcome] | None:
        self.turns += 1
        if any(one.stream_id == self.poison for one in events):
            raise ValueError("poison")
        await asyncio.sleep(0)
        if self._quiet:
            return None
        answers = await self._store.log.commit(Batch(moves=moves))
        accepted = {partition for partition, move in answers.moves.items() if move.verdict == "accepted"}
        self._seen.extend((one.stream_id, one.version) for one in events if one.partition in accepted)
        return answers.moves

    async def quarantine(self, rejected: EventRejected) -> bool:
        raise AssertionError(rejected)

    async def commit_moves(self, moves: Sequence[CheckpointMove]) -> Mapping[int, CheckpointMoveOutcome]:
        self.moves += 1
        return (await self._store.log.commit(Batch(moves=moves))).moves


class Forwarder(Recorder):
    """A handler that sends a command for each event, in the commit of the move: what it did outlives its death."""

    def __init__(self, store: Store) -> None:
        super().__init__(store, [])

    async def handle(
        self, events: Sequence[RecordedEvent], moves: Sequence[CheckpointMove]
    ) -> Mapping[int, CheckpointMoveOutcome] | None:
        sends = [
            Send(
                stream=one.stream_id,
                queue="generate",
                message=StepCommand(job_id=one.stream_id, step_id=new_id(), step="generate", version=one.version),
            )
            for one in events
        ]
        return (await self._store.log.commit(Batch(sends=sends, moves=moves))).moves


async def test_competing_processes_handle_every_event_exactly_once(store: Store, db_url: str) -> None:
    """Given three processes on one subscription, two of which are killed midway, then each event is handled once."""
    stores = [Store(db_url) for _ in range(3)]
    tasks = [
        asyncio.create_task(Subscription(one.log, one.notifier, Forwarder(one), codec.is_known, poll_s=0.02).run())
        for one in stores
    ]
    appends = [some_append(count=2) for _ in range(60)]
    for n, one in enumerate(appends):
        await store.log.commit(Batch(appends=[one]))
        if n in {20, 40}:
            tasks[n // 20 - 1].cancel()
    expected = sorted((str(one.stream), version) for one in appends for version in (1, 2))

    async def handled() -> list[tuple[str, int]]:
        rows = await store.database.read("select message from pgmq.q_generate")
        return sorted((found["job_id"], found["version"]) for row in rows for found in [json.loads(row["message"])])

    async def all_handled() -> bool:
        return len(await handled()) >= len(expected)

    await eventually(all_handled, within=30)
    assert await handled() == expected
    tasks[2].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for other in stores:
        await other.close()


async def test_subscriptions_of_one_process_share_a_reader(store: Store) -> None:
    """Given three subscriptions on one tailer, when events come, then all handle each once, and one reads."""
    store.notifier.start()
    reads = 0
    read_after = store.log.read_after

    async def counted(cursor: Mapping[int, int], *, limit: int) -> dict[int, list[RecordedEvent]]:
        nonlocal reads
        reads += 1
        return await read_after(cursor, limit=limit)

    tailer = Tailer(store.log, store.notifier, poll_s=60)
    seen: list[list[tuple[UUID, int]]] = [[], [], []]
    subscriptions = [
        Subscription(
            store.log, store.notifier, Recorder(store, one, f"reader-{n}"), codec.is_known, poll_s=60, source=tailer
        )
        for n, one in enumerate(seen)
    ]
    tasks = [asyncio.create_task(subscription.run()) for subscription in subscriptions]
    await eventually(lambda: asyncio.sleep(0, bool(tailer._ends) and all(one.available for one in subscriptions)))
    store.log.read_after = counted  # type: ignore[method-assign]
    appends = [some_append(stream_in(n), count=2) for n in range(5)]
    for one in appends:
        await store.committer.commit(Transition(append=one))
    expected = sorted((one.stream, version) for one in appends for version in (1, 2))
    await eventually(lambda: asyncio.sleep(0, [sorted(one) for one in seen] == [expected] * 3))
    assert reads <= len(appends) + 1
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await tailer.stop()


async def test_a_checkpoint_that_is_set_back_is_followed_on_the_server_alone(store: Store, db_url: str) -> None:
    """Given a server that lost an event and the checkpoint behind it, then what came instead is handled."""
    stream, tailer = stream_in(6), Tailer(store.log, store.notifier, poll_s=60)
    seen: list[tuple[UUID, int]] = []
    subscription = Subscription(store.log, store.notifier, Recorder(store, seen), codec.is_known, source=tailer)
    async with tailer.follow(None):
        await subscription.poll_once()
        await eventually(lambda: asyncio.sleep(0, bool(tailer._ends)))
        await store.committer.commit(Transition(append=some_append(stream)))
        await eventually(lambda: asyncio.sleep(0, tailer._ends[6].position == 1))
        await subscription.poll_once()
        connection = await connect(db_url)
        await connection.execute("alter table eventstore.envelopes disable trigger all")
        await connection.execute("delete from eventstore.events where partition = 6")
        await connection.execute("update eventstore.checkpoints set position = 0")
        await connection.close()
        other = stream_in(6)
        await store.log.commit(Batch(appends=[some_append(other)]))
        subscription._rechecked_at = 0.0
        await subscription.poll_once()
    assert seen == [(stream, 1), (other, 1)]
    await tailer.stop()


async def test_a_broken_handler_stops_its_partition_alone_and_skips_nothing(store: Store) -> None:
    """Given a handler that breaks on one job, then other partitions go on, and that one resumes where it stood."""
    seen: list[tuple[UUID, int]] = []
    handler = Recorder(store, seen)
    poisonous, beside, elsewhere = some_append(stream_in(1)), some_append(stream_in(1)), some_append(stream_in(2))
    handler.poison = poisonous.stream
    for one in (poisonous, beside, elsewhere):
        await store.log.commit(Batch(appends=[one]))
    subscription = Subscription(store.log, store.notifier, handler, codec.is_known, poll_s=0.02)
    running = asyncio.create_task(subscription.run())

    async def went_on() -> bool:
        return seen == [(elsewhere.stream, 1)]

    await eventually(went_on)
    failures = [subscription.cursors[1].failure]
    handler.poison = None

    async def resumed() -> bool:
        return [stream for stream, _ in seen] == [elsewhere.stream, poisonous.stream, beside.stream]

    await eventually(resumed)
    failures.append(subscription.cursors[1].failure)
    assert failures == ["poison", None]
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


@pytest.mark.parametrize(("code", "schema_version"), [("job.teleported", 1), ("step.start", 99)])
async def test_a_subscription_stops_before_what_it_does_not_know(
    store: Store, db_url: str, code: str, schema_version: int
) -> None:
    """Invariant 6: given an event of a later release, then all before it is handled and nothing after it."""
    seen: list[tuple[UUID, int]] = []
    before, after = some_append(stream_in(3)), some_append(stream_in(3))
    await store.log.commit(Batch(appends=[before]))
    unknown = {
        "stream": str(stream_in(3)),
        "category": "job",
        "tenant": "default",
        "expected": 0,
        "events": [
            {
                "event_id": str(new_id()),
                "code": code,
                "schema_version": schema_version,
                "ts": "2026-01-01T00:00:00Z",
                "data": "{}",
                "meta": "{}",
                "private": None,
            }
        ],
    }
    connection = await connect(db_url)
    await connection.execute("select eventstore.commit($1::json)", msgspec.json.encode([unknown]).decode())
    await connection.close()
    await store.log.commit(Batch(appends=[after]))
    subscription = Subscription(store.log, store.notifier, Recorder(store, seen), codec.is_known, poll_s=0.02)
    for _ in range(3):
        await subscription.poll_once()
    assert seen == [(before.stream, 1)]
    failure = subscription.cursors[3].failure
    assert failure is not None
    assert code in failure
    # Readers, unlike subscriptions, are given it as it is.
    assert codec.decode_body((await store.log.read_after({3: 1}, limit=1))[3][0]) is None


async def test_a_removed_event_stops_its_partition_alone(store: Store, db_url: str) -> None:
    """Given an event removed behind the log's back, then its partition stalls before it, and reports so."""
    seen: list[tuple[UUID, int]] = []
    appends = [some_append(stream_in(6)) for _ in range(3)]
    elsewhere = some_append(stream_in(1))
    for one in (*appends, elsewhere):
        await store.log.commit(Batch(appends=[one]))
    connection = await connect(db_url)
    await connection.execute("alter table eventstore.envelopes disable trigger all")
    await connection.execute("delete from eventstore.events where partition = 6 and position = 1")
    await connection.close()
    subscription = Subscription(store.log, store.notifier, Recorder(store, seen), codec.is_known, poll_s=0.02)
    await subscription.poll_once()
    assert seen == [(elsewhere.stream, 1)]
    assert "position 1 is missing" in (subscription.cursors[6].failure or "")


async def test_a_process_that_stood_still_goes_on_after_another_got_past(store: Store) -> None:
    """Given a poisonous event that a newer process handles, then the older one forgets its failure and follows."""
    seen: list[tuple[UUID, int]] = []
    older = Recorder(store, seen)
    poisonous, after = some_append(stream_in(1)), some_append(stream_in(1))
    older.poison = poisonous.stream
    await store.log.commit(Batch(appends=[poisonous]))
    subscription = Subscription(store.log, store.notifier, older, codec.is_known, poll_s=0.02)
    await subscription.poll_once()
    failures = [subscription.cursors[1].failure]
    await Subscription(store.log, store.notifier, Recorder(store, seen), codec.is_known).poll_once()
    await store.log.commit(Batch(appends=[after]))

    async def followed() -> bool:
        subscription.cursors[1].retry_at = 0.0
        await subscription.poll_once()
        return (after.stream, 1) in seen

    await eventually(followed)
    failures.append(subscription.cursors[1].failure)
    assert failures == ["poison", None]
    assert seen == [(poisonous.stream, 1), (after.stream, 1)]


async def test_checkpoints_move_past_events_without_reaction(store: Store) -> None:
    """Given events that lead to nothing, then the checkpoint moves lazily, once for many events."""
    handler = Recorder(store, [], quiet=True)
    subscription = Subscription(store.log, store.notifier, handler, codec.is_known, poll_s=0.02)
    for _ in range(5):
        await store.log.commit(Batch(appends=[some_append(stream_in(0))]))
        await subscription.poll_once()

    async def moved() -> bool:
        await subscription.poll_once()
        return (await store.log.checkpoints("recorder"))[0] == 5

    await eventually(moved)
    assert handler.moves <= 3


async def running_job(store: Store) -> tuple[JobService, UUID, UUID]:
    """A job whose generate step is running: its id, and the step's."""
    job_id, created = new_id(), job_created(count=1)
    step_id = created.steps[0].step_id
    start = StepStart(step_id=step_id, step_name="generate", attempt=1, runner="a")
    await store.log.commit(
        Batch(appends=[Append(stream=job_id, category="job", expected=0, events=(event(created), event(start)))])
    )
    return JobService(store.log, store.committer, "a"), job_id, step_id


async def test_a_full_batch_is_followed_by_the_next_at_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given more events than a turn handles, then the turn says that there may be more, and the last one does not."""
    monkeypatch.setattr(subscription, "_BATCH_SIZE", 3)
    await store.log.commit(Batch(appends=[some_append(count=4)]))
    reader = Subscription(store.log, store.notifier, Recorder(store, []), codec.is_known)
    assert [await reader.poll_once() for _ in range(3)] == [True, False, False]


async def test_a_busy_subscription_serves_several_streams_in_one_turn(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given a turn that served two streams, then what comes within a while is served together."""
    monkeypatch.setattr(subscription, "BUSY_GATHER_S", 1.0)
    seen: list[tuple[UUID, int]] = []
    recorder = Recorder(store, seen)
    reader = Subscription(store.log, store.notifier, recorder, codec.is_known)
    await store.log.commit(Batch(appends=[some_append(), some_append()]))
    running = asyncio.create_task(reader.run())

    async def has_seen(count: int) -> bool:
        return len(seen) == count

    await eventually(lambda: has_seen(2))
    turns = recorder.turns
    for _ in range(10):
        await store.committer.commit(Transition(append=some_append()))
        await asyncio.sleep(0.03)  # without gathering, a turn of its own
    await eventually(lambda: has_seen(12))
    assert recorder.turns - turns <= 3
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_a_reaction_rejected_by_a_cancel_that_came_first_is_not_lost(store: Store) -> None:
    """Given a failed step and a cancel that slips in between fold and commit, then the job still finishes."""
    _jobs, job_id, step_id = await running_job(store)
    failed = StepFinish(step_id=step_id, step_name="generate", attempt=1, status="failed")
    await store.log.commit(Batch(appends=[Append(stream=job_id, category="job", expected=2, events=(event(failed),))]))
    slipped = False

    real_streams = store.log.read_streams

    async def cancelling(streams: Sequence[UUID]) -> dict[UUID, list[RecordedEvent]]:
        nonlocal slipped
        found = await real_streams(streams)
        if not slipped:
            slipped = True
            cancel = Append(stream=job_id, category="job", expected=3, events=(event(CancelRequested()),))
            await store.log.commit(Batch(appends=[cancel]))
        return found

    store.log.read_streams = cancelling  # type: ignore[method-assign]
    subscription = Subscription(
        store.log, store.notifier, Orchestrator(store.log, store.committer, "o"), codec.is_known, poll_s=0.02
    )
    for _ in range(3):
        await subscription.poll_once()
    assert slipped
    assert (await store.codes(job_id))[3:] == ["job.cancel_requested", "job.finish"]
    assert (await store.state(job_id)).outcome == "failed"


async def test_a_zombie_that_folds_again_is_rejected(store: Store) -> None:
    """Given a runner whose step was started anew elsewhere, when it writes, then the newest fold rejects it."""
    jobs, job_id, step_id = await running_job(store)
    zombie = await jobs.load(job_id)
    other = await jobs.load(job_id)
    command = StartStep(
        step_id=step_id, claimed_attempt=1, runner="b", engine="e", source="s", model_id=None, max_attempts=3
    )
    await jobs.execute(other, command, CLAIM)
    history = History(scale=None)
    item = RecordItems(step_id=step_id, attempt=1, items=[replace(history.item("generate", 0), step_id=step_id)])
    with pytest.raises(StaleAttempt):
        await jobs.execute(zombie, item, CLAIM)
    with pytest.raises(StaleAttempt):
        await jobs.execute(await jobs.load(job_id), item, CLAIM)
