"""The outbox: a message belongs to whoever claimed it last."""

import asyncio

from eventstore.ids import new_id
from eventstore.log import Batch, Send
from eventstore.outbox import Outbox
from orchestrator import step_command
from orchestrator.step_command import StepClaim, StepCommand
from runners.consumer import Consumer
from tests.kit import Store, connect, eventually, some_append


async def send(store: Store, count: int = 1, *, queue: str = "generate", delay: float = 0.0) -> list[StepCommand]:
    """Put commands into a queue."""
    commands = []
    for _ in range(count):
        one = some_append()
        command = StepCommand(job_id=one.stream, step_id=new_id(), step=queue, version=1)
        message = Send(stream=one.stream, queue=queue, message=command, delay=delay)
        await store.log.commit(Batch(appends=[one], sends=[message]))
        commands.append(command)
    return commands


async def waiting(store: Store) -> int:
    """How many messages the queue of generate holds, hidden ones included."""
    return int((await store.database.read("select count(*) as n from pgmq.q_generate"))[0]["n"])


async def test_a_claim_hides_its_message_until_its_visibility_ends(store: Store) -> None:
    """Given a claimed command, then nobody else gets it, until the lease is over."""
    [command] = await send(store)
    first, second = (
        Outbox(store.database, ["generate"], step_command.decode),
        Outbox(store.database, ["generate"], step_command.decode),
    )
    [claim] = await first.claim(5, 0.3)
    assert claim.command == command
    assert await second.claim(5, 0.3) == []
    [again] = await eventually(lambda: second.claim(5, 60))
    assert again.read_ct == claim.read_ct + 1


async def test_a_command_of_an_earlier_release_is_read(store: Store, db_url: str) -> None:
    """Given a command with the client's traceparent, which none carries any more, then it is claimed as any other."""
    [command] = await send(store)
    connection = await connect(db_url)
    await connection.execute("""update pgmq.q_generate set message = message || '{"traceparent": "00-1"}'""")
    await connection.close()
    [claim] = await Outbox(store.database, ["generate"], step_command.decode).claim(5, 60)
    assert claim.command == command


async def test_concurrent_claims_share_the_messages_without_overlap(store: Store, db_url: str) -> None:
    """Given 40 commands and eight claimers at once, then each command is claimed by exactly one."""
    commands = await send(store, 40)
    stores = [Store(db_url) for _ in range(8)]
    claims = await asyncio.gather(
        *(Outbox(one.database, ["generate"], step_command.decode).claim(5, 60) for one in stores)
    )
    ids = [claim.command.job_id for found in claims for claim in found]
    assert sorted(ids) == sorted(command.job_id for command in commands)
    for one in stores:
        await one.close()


async def test_earlier_queues_are_emptied_first_and_slots_are_never_exceeded(store: Store) -> None:
    """Given both queues full, then one claim fills its slots with upscales before it takes a generate."""
    await send(store, 3, queue="generate")
    await send(store, 2, queue="upscale")
    claims = await Outbox(store.database, ["upscale", "generate"], step_command.decode).claim(3, 60)
    assert [claim.queue for claim in claims] == ["upscale", "upscale", "generate"]


async def test_a_lost_lease_is_reported_and_can_neither_extend_nor_settle(store: Store) -> None:
    """Given a message that another claimed since, then its first owner's heartbeat, defer and ack change nothing."""
    await send(store)
    outbox = Outbox(store.database, ["generate"], step_command.decode)
    [zombie] = await outbox.claim(1, 0)
    [owner] = await outbox.claim(1, 60)
    assert await outbox.extend([zombie], 0) == [zombie]
    assert await outbox.extend([owner], 60) == []
    await store.log.commit(Batch(defers=[zombie.defer(0)]))
    assert await outbox.claim(1, 60) == []
    await store.log.commit(Batch(acks=[zombie.ack()]))
    assert await waiting(store) == 1
    await store.log.commit(Batch(acks=[owner.ack()]))
    assert await waiting(store) == 0


async def test_a_deferred_message_is_shown_again_after_its_delay(store: Store) -> None:
    """Given a claim that is deferred, then it is hidden for the delay and claimable afterwards."""
    await send(store)
    outbox = Outbox(store.database, ["generate"], step_command.decode)
    [claim] = await outbox.claim(1, 60)
    await store.log.commit(Batch(defers=[claim.defer(0.3)]))
    assert await outbox.claim(1, 60) == []

    async def shown() -> list[StepClaim]:
        return await outbox.claim(1, 60)

    assert await eventually(shown)


async def test_a_message_below_the_floor_is_still_found(store: Store, db_url: str) -> None:
    """Ids are drawn before commit: one that appears below a floor taken meanwhile is claimed after all."""
    late = await connect(db_url)
    await late.execute("begin")
    await late.execute("""select pgmq.send('generate', '{"job_id": "018f0000-0000-7000-8000-000000000001",
        "step_id": "018f0000-0000-7000-8000-000000000002", "step": "generate", "version": 1}')""")
    await send(store)
    outbox = Outbox(store.database, ["generate"], step_command.decode)
    assert len(await outbox.claim(5, 60)) == 1
    await late.execute("commit")
    await late.close()
    outbox._min_msg_ids_at = 0.0
    assert len(await outbox.claim(5, 60)) == 1


async def test_an_unreadable_message_is_put_aside_and_the_others_are_claimed(store: Store) -> None:
    """It must neither end the runner nor come back for ever, nor be lost; but a newer release's runner may read it."""
    await store.database.execute_once("""select pgmq.send('generate', '{"x": 1}')""")
    [command] = await send(store)
    outbox = Outbox(store.database, ["generate"], step_command.decode)
    for tries in range(1, 4):
        assert [claim.command for claim in await outbox.claim(5, 0)] == [command]
        archived = await store.database.read("select message from pgmq.a_generate")
        assert [row["message"] for row in archived] == (['{"x": 1}'] if tries == 3 else [])


async def test_only_a_holder_puts_a_message_aside(store: Store) -> None:
    """Given a message that another has claimed since, then the older claim's token archives nothing."""
    [_] = await send(store)
    outbox = Outbox(store.database, ["generate"], step_command.decode)
    [old] = await outbox.claim(1, 0)
    [_] = await outbox.claim(1, 60)
    await store.database.execute_once("select eventstore.put_aside('generate', $1, $2)", old.msg_id, old.read_ct)
    assert await store.database.read("select 1 from pgmq.a_generate") == []


async def test_a_late_heartbeat_does_not_undo_a_hand_back(store: Store) -> None:
    """Given a deferred message, when its former owner's heartbeat arrives, then it stays claimable."""
    await send(store)
    outbox = Outbox(store.database, ["generate"], step_command.decode)
    [claim] = await outbox.claim(1, 60)
    await store.log.commit(Batch(defers=[claim.defer(0)]))
    assert await outbox.extend([claim], 60) == [claim]
    assert len(await outbox.claim(1, 60)) == 1


async def test_of_two_claims_of_one_message_only_the_newer_is_kept(store: Store) -> None:
    """Given a process that claimed a message again after its lease had ended, then the older run learns of it."""
    await send(store)
    outbox = Outbox(store.database, ["generate"], step_command.decode)
    [older] = await outbox.claim(1, 0)
    [newer] = await outbox.claim(1, 60)
    assert await outbox.extend([older, newer], 60) == [older]


async def test_heartbeats_and_deferrals_cannot_deadlock(store: Store, db_url: str) -> None:
    """Given deferrals whose delays run against the order of their messages, beside heartbeats of the same, all pass."""
    await send(store, 12)
    other = Store(db_url)
    outbox = Outbox(other.database, ["generate"], step_command.decode)
    claims = await outbox.claim(12, 60)

    async def beat() -> None:
        for _ in range(60):
            await outbox.extend(claims, 60)

    async def defer() -> None:
        for _ in range(20):
            delays = [claim.defer(60 - n) for n, claim in enumerate(claims)]
            await store.log.commit(Batch(defers=delays))

    await asyncio.gather(beat(), beat(), defer())
    await other.close()


class FailsOnce(Consumer):
    """One whose first heartbeat fails, as a fault that nobody foresaw would."""

    beats = 0

    async def _extend_leases(self) -> None:
        self.beats += 1
        if self.beats == 1:
            raise RuntimeError("nobody foresaw it")


async def test_a_heartbeat_that_starts_again_beats_at_once(store: Store) -> None:
    """Given a lease of an hour, then the next beat comes with the restart: what failed before may have been any."""

    async def run(_: StepClaim) -> None:
        raise AssertionError("nothing is claimed here")

    consumer = FailsOnce(
        Outbox(store.database, ["generate"], step_command.decode), store.notifier, run, slots=1, lease_s=3600
    )
    consumer.heartbeat.start()

    async def beaten() -> bool:
        return consumer.beats == 2

    await eventually(beaten, what="the second beat")
    await consumer.heartbeat.stop()
