"""The queues can be lost, held against the log, and rebuilt: exactly the pending commands are sent again."""

from collections.abc import Callable, Sequence
from uuid import UUID

import msgspec
import pytest

from eventstore.ids import new_id
from eventstore.integrity.chain import partition_of
from eventstore.log import Append, Batch, CheckpointMove, Send
from eventstore.outbox import Outbox
from orchestrator import codec, step_command
from orchestrator.events import (
    CancelRequested,
    DomainEvent,
    JobFinish,
    Meta,
    OutboxPurged,
    OutboxRebuilt,
    StepName,
    StepRetry,
)
from orchestrator.reconciler import OUTBOX_STREAM, OutboxReconciler
from orchestrator.step_command import StepCommand
from tests.kit import NOON, History, Store

HANDED_BACK = {"attempt": 1, "reason": "hand_back", "error_code": None, "error_message": None, "delay_s": 0.0}


def handed_back(history: History) -> History:
    """A step that waits to be taken again."""
    body = StepRetry(step_id=history.step_id("generate"), step_name="generate", **HANDED_BACK)  # type: ignore[arg-type]
    return history.started("generate").add(body)


JOBS: dict[str, tuple[Callable[[History], History], StepName | None, bool]] = {
    "created": (lambda history: history, "generate", False),
    "running": (lambda history: history.started("generate"), "generate", True),
    "waiting for a retry": (handed_back, "generate", False),
    "half done": (
        lambda history: history.started("generate").wrote("generate", 0).finished("generate"),
        "upscale",
        False,
    ),
    "cancel pending, running": (lambda history: history.started("generate").add(CancelRequested()), "generate", True),
    "cancel pending, not started": (lambda history: history.add(CancelRequested()), None, False),
    "failed, not yet closed": (lambda history: history.started("generate").finished("generate", "failed"), None, False),
    "ended": (
        lambda history: history.started("generate").finished("generate", "failed").add(JobFinish(status="failed")),
        None,
        False,
    ),
}


async def write(store: Store, history: History, *, reacted: bool = True) -> None:
    """A job's history, and the orchestrator's checkpoint behind it if it has reacted."""
    events = tuple(
        codec.new_event(new_id(), NOON, one.body, Meta(), one.private) for one in history.events if one.body is not None
    )
    append = Append(stream=history.job_id, category="job", expected=0, events=events)
    moves: Sequence[CheckpointMove] = ()
    if reacted:
        partition = partition_of(history.job_id, 8)
        start = (await store.log.checkpoints("orchestrator"))[partition]
        moves = [CheckpointMove(subscription="orchestrator", partition=partition, start=start, end=start)]
    assert (await store.log.commit(Batch(appends=[append], moves=moves))).streams[history.job_id].committed


async def held(store: Store) -> list[tuple[str, UUID, bool]]:
    """What the queues hold: queue, step, and whether it can be claimed now."""
    rows = await store.database.read(
        "select 'generate' as queue, message, vt <= clock_timestamp() as now from pgmq.q_generate "
        "union all select 'upscale', message, vt <= clock_timestamp() from pgmq.q_upscale"
    )
    return [(row["queue"], _step(row["message"]), row["now"]) for row in rows]


def _step(message: str) -> UUID:
    """The step of a command."""
    return msgspec.json.decode(message, type=StepCommand).step_id


async def notes(store: Store) -> list[DomainEvent | None]:
    """What the log says was done to the queues."""
    return [codec.decode_body(one) for one in await store.log.read_stream(OUTBOX_STREAM)]


@pytest.mark.parametrize("name", JOBS)
async def test_exactly_what_is_owed_is_sent_again(store: Store, name: str) -> None:
    """Given queues that were lost, then a job's command comes back if it is pending; a running step's after a lease."""
    tell, step, running = JOBS[name]
    history = tell(History())
    await store.log.subscribe("orchestrator")
    await write(store, history)
    reconciler = OutboxReconciler(store.database, "operator")
    sent = await reconciler.rebuild(60)
    assert [(one.job_id, one.step, one.running) for one in sent] == ([(history.job_id, step, running)] if step else [])
    assert await held(store) == ([(step, history.step_id(step), not running)] if step else [])
    assert await reconciler.rebuild(60) == []
    assert await notes(store) == ([OutboxRebuilt(commands={step: 1})] if step else [])


async def test_what_was_not_reacted_to_is_left_to_the_orchestrator(store: Store) -> None:
    """Given an orchestrator that is behind, then it will send the command itself."""
    await store.log.subscribe("orchestrator")
    await write(store, History(), reacted=False)
    assert await OutboxReconciler(store.database, "operator").rebuild(0) == []


async def test_a_purge_is_noted_and_can_be_undone(store: Store) -> None:
    """Given commands of two jobs, one of them idle, then the pending one comes back after a purge."""
    await store.log.subscribe("orchestrator")
    history, ended = History(), JOBS["ended"][0](History())
    for one in (history, ended):
        await write(store, one)
        command = StepCommand(job_id=one.job_id, step_id=one.step_id("generate"), step="generate", version=1)
        await store.log.commit(Batch(sends=[Send(stream=one.job_id, queue="generate", message=command)]))
    reconciler = OutboxReconciler(store.database, "operator")
    [generate, upscale] = await reconciler.queue_statuses()
    assert (generate.visible, generate.idle, generate.missing, upscale.visible) == (2, 1, 0, 0)
    assert await reconciler.purge() == {"generate": 2, "upscale": 0}
    [generate, _] = await reconciler.queue_statuses()
    assert (generate.visible, generate.missing, generate.oldest) == (0, 1, None)
    await reconciler.rebuild(0)
    [claim] = await Outbox(store.database, ["generate", "upscale"], step_command.decode).claim(5, 60)
    assert claim.command.job_id == history.job_id
    assert await notes(store) == [
        OutboxPurged(commands={"generate": 2, "upscale": 0}),
        OutboxRebuilt(commands={"generate": 1}),
    ]
