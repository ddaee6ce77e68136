"""Who is woken: those who follow the log by events, and few of those who serve a queue by commands."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from eventstore.committer import Transition
from eventstore.ids import new_id
from eventstore.log import Batch, Send
from eventstore.notifier import LOG_CHANNEL, WakeSignal, queue_channel
from eventstore.outbox import SEATS, Outbox
from orchestrator import step_command
from orchestrator.step_command import StepClaim, StepCommand, StepOutbox
from runners.consumer import Consumer
from tests.kit import Store, connect, eventually, some_append
from tests.pooler import listens

FLEET = 8
GENERATE = queue_channel("generate")

if not listens():
    pytest.skip("without LISTEN nobody is woken", allow_module_level=True)


def send(queue: str = "generate") -> Send:
    """A command."""
    job_id = new_id()
    return Send(stream=job_id, queue=queue, message=StepCommand(job_id=job_id, step_id=new_id(), step=queue, version=1))


def outbox(store: Store, *queues: str) -> StepOutbox:
    """What a process claims from."""
    return Outbox(store.database, queues or ["generate"], step_command.decode)


@pytest.fixture
async def other(db_url: str) -> AsyncIterator[Store]:
    """Another process on the same log."""
    store = Store(db_url)
    yield store
    await store.close()


async def listening(store: Store, *channels: str) -> WakeSignal:
    """A signal of a process that listens already."""
    store.notifier.start()
    signal = store.notifier.add_wake_signal(*channels)
    await asyncio.wait_for(signal.wait(20), 20)  # what came before it listened
    return signal


async def listening_sessions(store: Store, wanted: int) -> None:
    """Wait until so many sessions of the database listen."""
    query = "select count(*) from pg_stat_activity where datname = current_database() and query like 'LISTEN%'"

    async def are_there() -> bool:
        [row] = await store.database.read(query)
        return bool(row["count"] == wanted)

    await eventually(are_there, what=f"{wanted} sessions that listen")


async def test_events_wake_the_readers_of_the_log_alone(store: Store, other: Store) -> None:
    """Given a reader and a consumer in another process, then events wake the one, and commands the other."""
    other.notifier.start()
    reader = await listening(store, LOG_CHANNEL)
    consumer = await listening(store, GENERATE)
    await other.committer.commit(Transition(append=some_append()))
    assert await reader.wait(20)
    await other.committer.commit_batch(Batch(sends=[send()]))
    assert await consumer.wait(20)
    assert not await reader.wait(0)
    await other.committer.commit_batch(Batch(sends=[send("upscale")]))
    await other.committer.commit(Transition(append=some_append()))
    assert await reader.wait(20)
    assert not await consumer.wait(0)


async def test_a_process_that_waits_for_nothing_does_not_listen(store: Store) -> None:
    """Given no signal, or only one that others don't wake, then it has no session that listens."""
    store.notifier.start()
    signal = store.notifier.add_wake_signal(GENERATE, remote_delay_s=None)
    await listening_sessions(store, 0)
    store.notifier.set_remote_delay(signal, 0.0)
    await listening_sessions(store, 1)
    store.notifier.remove_wake_signal(signal)
    await listening_sessions(store, 0)


@asynccontextmanager
async def overhearing(db_url: str, *channels: str) -> AsyncIterator[list[str]]:
    """What is sent on some channels, heard by a session that no process knows of."""
    heard: list[str] = []
    connection = await connect(db_url)
    for channel in channels:
        await connection.add_listener(channel, lambda *notification: heard.append(notification[2]))
    yield heard
    await connection.close()


async def test_nothing_is_sent_on_a_channel_that_nobody_listens_to(
    store: Store, other: Store, db_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given others that listen for commands alone, then no event is announced; once one listens to events, it is."""
    monkeypatch.setattr("eventstore.notifier._LISTENERS_KNOWN_S", 0.0)
    await listening(store, LOG_CHANNEL)
    await listening(other, GENERATE)
    async with overhearing(db_url, LOG_CHANNEL) as heard:
        for _ in range(3):
            await store.committer.commit(Transition(append=some_append()))
            await eventually(lambda: asyncio.sleep(0, not store.notifier._unsent_channels))
        await store.log.confirm_replicated()
        assert heard == []
        reader = await listening(other, LOG_CHANNEL)
        await store.committer.commit(Transition(append=some_append()))
        assert await reader.wait(20)
        await eventually(lambda: asyncio.sleep(0, heard == [LOG_CHANNEL]))


async def test_others_are_told_of_commands_that_their_process_has_no_slot_for(
    store: Store, other: Store, db_url: str
) -> None:
    """Given a process that sends and runs commands, then others are told only of what finds its slots taken."""
    runs: list[asyncio.Future[None]] = []

    async def run(claim: StepClaim) -> None:
        runs.append(asyncio.get_running_loop().create_future())
        await runs[-1]
        await store.log.commit(Batch(acks=[claim.ack()]))

    store.notifier.start()
    consumer = Consumer(outbox(store), store.notifier, run, slots=2, lease_s=15)
    running = asyncio.create_task(consumer.run())
    await eventually(lambda: asyncio.sleep(0, consumer.ready))
    woken = await listening(other, GENERATE)
    async with overhearing(db_url, GENERATE) as heard:
        await store.committer.commit_batch(Batch(sends=[send()]))
        await eventually(lambda: asyncio.sleep(0, len(runs) == 1))
        await asyncio.sleep(0.1)
        assert heard == []
        await store.committer.commit_batch(Batch(sends=[send(), send()]))
        assert await woken.wait(20)
        await eventually(lambda: asyncio.sleep(0, len(runs) == 2))
        await eventually(lambda: asyncio.sleep(0, not consumer._wake_signal._notified.is_set()))
        heard.clear()
        await store.committer.commit_batch(Batch(sends=[send()]))
        await eventually(lambda: asyncio.sleep(0, heard == [GENERATE]))
    consumer.stop()
    for one in runs:
        one.set_result(None)
    await running


async def test_a_queue_has_few_seats(store: Store) -> None:
    """Given more processes than seats, then the rest learn how many are idle; a seat that is left is taken again."""
    fleet = [outbox(store) for _ in range(SEATS + 2)]
    reports = [await one.report_process(1, 1, wants_seat=True) for one in fleet]
    assert [report.seat for report in reports] == [*range(SEATS), None, None]
    assert [report.idle for report in reports] == list(range(1, SEATS + 3))
    assert (await fleet[1].report_process(1, 1, wants_seat=True)).seat == 1
    assert (await fleet[1].report_process(1, 0, wants_seat=False)).seat is None
    taken = await fleet[-1].report_process(1, 1, wants_seat=True)
    assert (taken.seat, taken.idle) == (1, SEATS + 1)
    await fleet[0].forget_process()
    assert (await fleet[-2].report_process(1, 1, wants_seat=True)).seat == 0


async def test_processes_of_other_queues_have_seats_of_their_own(store: Store) -> None:
    """Given a fleet for each queue, then neither counts the other's, and a process of both stands in both."""
    assert (await outbox(store, "generate").report_process(1, 1, wants_seat=True)).seat == 0
    apart = await outbox(store, "upscale").report_process(1, 1, wants_seat=True)
    assert (apart.seat, apart.idle) == (0, 1)
    both = await outbox(store, "upscale", "generate").report_process(1, 1, wants_seat=True)
    assert (both.seat, both.idle) == (1, 3)


async def test_the_seat_of_a_process_that_is_gone_lapses(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a process that was killed, then it is forgotten after a while, and its seat is free."""
    assert (await outbox(store).report_process(1, 1, wants_seat=True)).seat == 0
    monkeypatch.setattr("eventstore.outbox._SEAT_LAPSE_S", 0.0)
    report = await outbox(store).report_process(1, 1, wants_seat=True)
    assert (report.seat, report.idle) == (0, 1)


async def test_processes_that_start_together_share_no_seat(store: Store, other: Store) -> None:
    """Given many reports at once, then each seat is given once."""
    fleet = [outbox(one) for one in (store, other) for _ in range(6)]
    reports = await asyncio.gather(*(one.report_process(1, 1, wants_seat=True) for one in fleet))
    assert sorted(report.seat for report in reports if report.seat is not None) == list(range(SEATS))


@asynccontextmanager
async def running_fleet(db_url: str, run: Callable[[StepClaim], Awaitable[None]]) -> AsyncIterator[None]:
    """Consumers of one slot, each with connections of its own."""
    async with AsyncExitStack() as stack:
        for _ in range(FLEET):
            store = Store(db_url)
            stack.push_async_callback(store.close)
            store.notifier.start()
            consumer = Consumer(outbox(store), store.notifier, run, slots=1, lease_s=15)
            running = asyncio.create_task(consumer.run())
            stack.push_async_callback(asyncio.wait, [running])
            stack.callback(consumer.stop)
        yield


async def test_a_command_wakes_no_more_of_a_fleet_than_have_seats(
    store: Store, db_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given eight idle runners, then events wake none, a command at most four, and one runs it."""
    woken: list[WakeSignal] = []
    wake = WakeSignal.wake

    def counted(signal: WakeSignal) -> None:
        woken.append(signal)
        wake(signal)

    ran: list[StepClaim] = []

    async def run(claim: StepClaim) -> None:
        ran.append(claim)
        await store.log.commit(Batch(acks=[claim.ack()]))

    store.notifier.start()
    async with running_fleet(db_url, run):
        await listening_sessions(store, SEATS)
        await asyncio.sleep(0.1)  # each has woken once, for what came before it listened
        monkeypatch.setattr(WakeSignal, "wake", counted)
        for _ in range(10):
            await store.committer.commit(Transition(append=some_append()))
        assert woken == []
        await store.committer.commit_batch(Batch(sends=[send()]))

        async def has_run() -> bool:
            return len(ran) == 1

        await eventually(has_run, what="the command's run")
        await asyncio.sleep(0.2)
        # One more: who ran it claims again as soon as its slot is free.
        assert len(woken) <= SEATS + 1
        assert len(ran) == 1


@pytest.mark.parametrize(("slots", "claims"), [(2, 2), (1, 3)])
async def test_a_free_slot_looks_for_commands_only_where_some_may_wait(
    store: Store, monkeypatch: pytest.MonkeyPatch, slots: int, claims: int
) -> None:
    """Given one command, when its run ends, then only a consumer whose slots were all taken claims again."""
    monkeypatch.setattr("runners.consumer._POLL_INTERVAL_S", 60.0)
    asked: list[int] = []
    ended = asyncio.Event()

    async def run(claim: StepClaim) -> None:
        await store.log.commit(Batch(acks=[claim.ack()]))
        ended.set()

    claiming = outbox(store)
    claim = claiming.claim

    async def counted(max_claims: int, visibility_s: float) -> list[StepClaim]:
        asked.append(max_claims)
        return await claim(max_claims, visibility_s)

    monkeypatch.setattr(claiming, "claim", counted)
    consumer = Consumer(claiming, store.notifier, run, slots=slots, lease_s=15)
    running = asyncio.create_task(consumer.run())
    await eventually(lambda: asyncio.sleep(0, consumer.ready))
    await store.committer.commit_batch(Batch(sends=[send()]))
    await asyncio.wait_for(ended.wait(), 20)
    await eventually(lambda: asyncio.sleep(0, len(asked) >= claims))
    await asyncio.sleep(0.1)
    assert asked == [slots] * claims
    consumer.stop()
    await running


async def test_a_full_consumer_that_was_woken_claims_when_a_slot_is_free(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given a command that comes while every slot is taken, then the run that ends first makes room for it."""
    monkeypatch.setattr("runners.consumer._POLL_INTERVAL_S", 60.0)
    runs: list[asyncio.Future[None]] = []

    async def run(claim: StepClaim) -> None:
        runs.append(asyncio.get_running_loop().create_future())
        await runs[-1]
        await store.log.commit(Batch(acks=[claim.ack()]))

    consumer = Consumer(outbox(store), store.notifier, run, slots=2, lease_s=15)
    running = asyncio.create_task(consumer.run())
    for count in (1, 2):
        await store.committer.commit_batch(Batch(sends=[send()]))
        await eventually(lambda count=count: asyncio.sleep(0, len(runs) == count))  # type: ignore[misc]
    await store.committer.commit_batch(Batch(sends=[send()]))
    await asyncio.sleep(0.05)
    runs[0].set_result(None)
    await eventually(lambda: asyncio.sleep(0, len(runs) == 3))
    for one in runs[1:]:
        one.set_result(None)
    consumer.stop()
    await running


async def test_a_consumer_that_stops_leaves_its_seat(store: Store) -> None:
    """Given a consumer with a seat, when it has stopped, then the next process has that seat at once."""

    async def run(_claim: StepClaim) -> None:
        raise AssertionError("there is no command")

    store.notifier.start()
    consumer = Consumer(outbox(store), store.notifier, run, slots=1, lease_s=15)
    running = asyncio.create_task(consumer.run())
    await listening_sessions(store, 1)
    consumer.stop()
    await running
    assert (await outbox(store).report_process(1, 1, wants_seat=True)).seat == 0


async def test_one_turn_serves_what_comes_while_it_gathers() -> None:
    """Given a second notification while a task gathers, then it is woken once."""
    signal = WakeSignal()
    signal.wake()
    asyncio.get_running_loop().call_soon(signal.wake)
    assert await signal.wait(20, gather_s=0.05)
    assert not await signal.wait(0)
