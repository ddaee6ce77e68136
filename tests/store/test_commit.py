"""Invariants 2 and 3: streams without gaps, one winner, one call that says how each stream was taken."""

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from typing import Any

import asyncpg
import pytest

from eventstore.ids import new_id
from eventstore.log import Ack, Append, Batch, CheckpointMove, Send
from orchestrator.events import DomainEvent, RetryRequested, StepRetry
from orchestrator.step_command import StepCommand
from tests.kit import NOBODY, Store, connect, event, some_append, stream_in

RETRY: dict[str, Any] = {
    "step_id": NOBODY,
    "step_name": "generate",
    "attempt": 1,
    "error_code": "internal",
    "error_message": "it broke",
    "delay_s": 1.0,
}
"""A step.retry but for its reason."""


def command(stream: object) -> Send:
    """A command whose meaning doesn't matter."""
    return Send(
        stream=stream,  # type: ignore[arg-type]
        queue="generate",
        message=StepCommand(job_id=stream, step_id=new_id(), step="generate", version=1),  # type: ignore[arg-type]
    )


async def queued(store: Store) -> int:
    """How many commands wait for generate."""
    return int((await store.database.read("select count(*) as n from pgmq.q_generate"))[0]["n"])


async def test_versions_are_assigned_without_gaps(store: Store) -> None:
    """Given a stream at version 3, when two more events are appended, then they are 4 and 5."""
    first = some_append(count=3)
    await store.log.commit(Batch(appends=[first]))
    answers = await store.log.commit(Batch(appends=[some_append(first.stream, expected=3, count=2)]))
    assert answers.streams[first.stream].verdict == "accepted"
    assert answers.streams[first.stream].version == 5
    assert [one.version for one in await store.log.read_stream(first.stream)] == [1, 2, 3, 4, 5]


async def test_of_appends_with_one_expected_version_exactly_one_wins(store: Store, db_url: str) -> None:
    """Given 12 connections that append at version 1 at once, then one is accepted and the others learn the version."""
    first = some_append()
    await store.log.commit(Batch(appends=[first]))
    stores = [Store(db_url) for _ in range(12)]
    answers = await asyncio.gather(
        *(one.log.commit(Batch(appends=[some_append(first.stream, expected=1)])) for one in stores)
    )
    verdicts = sorted(answer.streams[first.stream].verdict for answer in answers)
    assert verdicts == ["accepted"] + ["conflict"] * 11
    assert {answer.streams[first.stream].version for answer in answers} == {2}
    assert len(await store.log.read_stream(first.stream)) == 2
    for one in stores:
        await one.close()


async def test_a_conflicting_stream_does_not_spoil_the_others_of_its_batch(store: Store) -> None:
    """Given one append of three at a wrong version, then the others are written, and its command is not sent."""
    stale, fresh, other = some_append(expected=4), some_append(), some_append()
    answers = await store.log.commit(
        Batch(appends=[fresh, stale, other], sends=[command(one.stream) for one in (stale, fresh, other)])
    )
    assert answers.streams[stale.stream].verdict == "conflict"
    assert answers.streams[stale.stream].version == 0
    assert answers.streams[fresh.stream].committed
    assert answers.streams[other.stream].committed
    assert await queued(store) == 2


async def test_a_call_whose_answer_was_lost_is_recognised(store: Store) -> None:
    """Given a batch that was written, when the very same is sent again, then it is `mine` and nothing doubles."""
    one = some_append(count=2)
    batch = Batch(appends=[one], sends=[command(one.stream)])
    await store.log.commit(batch)
    await store.log.commit(Batch(appends=[some_append(one.stream, expected=2)]))
    answers = await store.log.commit(batch)
    assert answers.streams[one.stream].verdict == "already_committed"
    assert len(await store.log.read_stream(one.stream)) == 3
    assert await queued(store) == 1


async def test_with_moves_one_rejection_drops_its_whole_partition_and_no_other(store: Store) -> None:
    """Given moves of two partitions and a conflict in one, then nothing of that one is written, all of the other is."""
    await store.log.subscribe("s")
    stale, beside = some_append(stream_in(1), expected=9), some_append(stream_in(1))
    elsewhere = some_append(stream_in(2))
    moves = [CheckpointMove(subscription="s", partition=p, start=0, end=0) for p in (1, 2)]
    answers = await store.log.commit(
        Batch(
            appends=[stale, beside, elsewhere],
            sends=[command(stale.stream), command(beside.stream), command(elsewhere.stream)],
            moves=moves,
        )
    )
    assert answers.streams[stale.stream].verdict == "conflict"
    assert answers.streams[beside.stream].verdict == "rejected"
    assert answers.streams[elsewhere.stream].verdict == "accepted"
    assert answers.moves[1].verdict == "rejected"
    assert answers.moves[2].verdict == "accepted"
    assert await store.log.read_stream(beside.stream) == []
    assert await queued(store) == 1


async def test_a_checkpoint_that_another_moved_rejects_the_writes_with_it(store: Store) -> None:
    """Given a checkpoint at 5, when a batch moves it from 0, then neither its append nor its command is written."""
    await store.log.subscribe("s")
    one = some_append(stream_in(3))
    await store.log.commit(Batch(moves=[CheckpointMove(subscription="s", partition=3, start=0, end=5)]))
    answers = await store.log.commit(
        Batch(
            appends=[one],
            sends=[command(one.stream)],
            moves=[CheckpointMove(subscription="s", partition=3, start=0, end=7)],
        )
    )
    assert answers.moves[3].verdict == "conflict"
    assert answers.moves[3].position == 5
    assert answers.streams[one.stream].verdict == "rejected"
    assert await queued(store) == 0


async def test_a_stream_named_twice_is_rejected(store: Store) -> None:
    """A batch that names a stream twice is a mistake of its caller, and raises."""
    one = some_append()
    with pytest.raises(asyncpg.PostgresError, match="named twice"):
        await store.log.commit(Batch(appends=[one, some_append(one.stream, expected=1)]))


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
async def test_another_isolation_level_is_rejected(db_url: str, level: str) -> None:
    """Under a snapshot older than the lock, last + 1 would be wrong."""
    connection = await connect(db_url)
    with pytest.raises(asyncpg.PostgresError, match="READ COMMITTED"):
        async with connection.transaction(isolation=level.replace(" ", "_")):
            await connection.execute("select eventstore.commit()")
    await connection.close()


async def test_a_second_call_in_one_transaction_is_rejected(db_url: str) -> None:
    """Two calls in one transaction would take locks out of order."""
    connection = await connect(db_url)
    await connection.execute("begin")
    await connection.execute("select eventstore.commit()")
    with pytest.raises(asyncpg.PostgresError, match="twice in one transaction"):
        await connection.execute("select eventstore.commit()")
    await connection.execute("rollback")
    await connection.execute("select eventstore.commit()")
    await connection.close()


async def test_an_acknowledgement_without_the_owners_token_does_nothing(store: Store) -> None:
    """Given a message claimed twice, when the first owner acknowledges it, then it stays."""
    one = some_append()
    await store.log.commit(Batch(appends=[one], sends=[command(one.stream)]))
    await store.database.execute_once("select eventstore.claim('{generate}', '{0}', 1, 0)")
    await store.database.execute_once("select eventstore.claim('{generate}', '{0}', 1, 60)")
    await store.log.commit(Batch(acks=[Ack(stream=one.stream, queue="generate", msg_id=1, read_ct=1)]))
    assert await queued(store) == 1
    await store.log.commit(Batch(acks=[Ack(stream=one.stream, queue="generate", msg_id=1, read_ct=2)]))
    assert await queued(store) == 0


WRITER = """
import asyncio, sys
from eventstore.log import Batch
from tests.kit import Store, some_append, stream_in

async def main():
    store = Store(sys.argv[1], listen=False)
    print("writing", flush=True)
    while True:
        await store.log.commit(Batch(appends=[some_append(stream_in(p), count=5) for p in range(8)]))

asyncio.run(main())
"""


async def test_a_client_frozen_anywhere_stops_no_other_writer(store: Store, db_url: str) -> None:
    """Given a writer frozen by SIGSTOP at 15 random moments, then another one commits in every partition meanwhile."""
    writer = await asyncio.to_thread(subprocess.Popen, [sys.executable, "-c", WRITER, db_url], stdout=subprocess.PIPE)
    assert writer.stdout is not None
    try:
        assert await asyncio.to_thread(writer.stdout.readline) == b"writing\n"
        dice = random.Random(4)
        for _ in range(15):
            await asyncio.sleep(dice.uniform(0.005, 0.05))
            os.kill(writer.pid, signal.SIGSTOP)
            async with asyncio.timeout(10):
                await store.log.commit(Batch(appends=[some_append(stream_in(p)) for p in range(8)]))
            os.kill(writer.pid, signal.SIGCONT)
    finally:
        writer.kill()
        writer.wait()
        writer.stdout.close()


async def test_recorded_at_never_runs_backwards_in_a_partition(store: Store) -> None:
    """as_of relies on it."""
    for _ in range(20):
        await store.log.commit(Batch(appends=[some_append(stream_in(0)), some_append(stream_in(0))]))
    events = (await store.log.read_after({0: 0}, limit=100))[0]
    clock = [one.recorded_at for one in events]
    assert clock == sorted(clock)
    assert clock[-1].timestamp() <= time.time() + 5


@pytest.mark.parametrize(
    ("body", "version"),
    [
        (StepRetry(**RETRY, reason="failure"), 1),
        (StepRetry(**RETRY, reason="not_started"), 2),
        (RetryRequested(step_id=NOBODY, step_name="generate"), 1),
        (RetryRequested(step_id=NOBODY, step_name="generate", items=[0]), 2),
    ],
)
async def test_what_an_earlier_schema_version_can_hold_is_written_in_it(
    store: Store, body: DomainEvent, version: int
) -> None:
    """A process of an earlier release reads what it can, and stops at the rest."""
    append = Append(stream=new_id(), category="job", expected=0, events=(event(body),))
    await store.log.commit(Batch(appends=[append]))
    [row] = await store.log.read_stream(append.stream)
    assert row.schema_version == version
