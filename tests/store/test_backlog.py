"""The gauges of queues and subscriptions: what they count, and what becomes of them without the database."""

from prometheus_client import REGISTRY

from eventstore import metrics
from eventstore.ids import new_id
from eventstore.log import Batch, CheckpointMove, Send
from eventstore.metrics import BacklogGauges
from eventstore.outbox import Outbox
from orchestrator import step_command
from orchestrator.step_command import StepCommand
from tests.kit import Store, connect, some_append, stream_in


def gauge(name: str, **labels: str) -> float | None:
    """A gauge's value in this process; None if it is not there."""
    return REGISTRY.get_sample_value(name, labels)


async def test_the_events_that_a_subscription_has_not_passed_are_its_lag(store: Store) -> None:
    """Given five events in two partitions, one passed, then four are ahead; passed all, none."""
    await store.log.subscribe("s")
    for partition, count in ((0, 3), (5, 2)):
        await store.log.commit(Batch(appends=[some_append(stream_in(partition), count=count)]))
    await store.log.commit(Batch(moves=[CheckpointMove(subscription="s", partition=0, start=0, end=1)]))
    await BacklogGauges(store.database).refresh()
    assert gauge("df_projection_lag_events", subscription="s") == 4
    assert (gauge("df_projection_lag_seconds", subscription="s") or 0) > 0
    await store.log.commit(
        Batch(
            moves=[
                CheckpointMove(subscription="s", partition=0, start=1, end=3),
                CheckpointMove(subscription="s", partition=5, start=0, end=2),
            ]
        )
    )
    await BacklogGauges(store.database).refresh()
    assert gauge("df_projection_lag_events", subscription="s") == 0
    assert gauge("df_projection_lag_seconds", subscription="s") == 0


async def test_a_queue_is_as_deep_as_what_is_not_yet_done(store: Store) -> None:
    """Given commands of which one is claimed and one deferred, then all count; an acknowledged one does not."""
    stream = new_id()
    command = StepCommand(job_id=stream, step_id=new_id(), step="generate", version=1)
    sends = [Send(stream=stream, queue="generate", message=command, delay=delay) for delay in (0, 0, 60)]
    await store.log.commit(Batch(appends=[some_append(stream)], sends=sends))
    [claim] = await Outbox(store.database, ["generate"], step_command.decode).claim(1, 60)
    await BacklogGauges(store.database).refresh()
    assert gauge("df_queue_depth", queue="generate") == 3
    assert gauge("df_queue_depth", queue="upscale") == 0
    await store.log.commit(Batch(acks=[claim.ack()]))
    await BacklogGauges(store.database).refresh()
    assert gauge("df_queue_depth", queue="generate") == 2


async def test_the_oldest_command_counts_from_when_it_was_sent(store: Store) -> None:
    """Given a command sent an hour ago and claimed since, then it is an hour old."""
    stream = new_id()
    command = StepCommand(job_id=stream, step_id=new_id(), step="upscale", version=1)
    await store.log.commit(
        Batch(appends=[some_append(stream)], sends=[Send(stream=stream, queue="upscale", message=command)])
    )
    await store.database.execute_once("update pgmq.q_upscale set enqueued_at = enqueued_at - interval '1 hour'")
    await Outbox(store.database, ["upscale"], step_command.decode).claim(1, 60)
    await BacklogGauges(store.database).refresh()
    assert 3600 <= (gauge("df_queue_oldest_age_seconds", queue="upscale") or 0) < 3700
    assert gauge("df_queue_oldest_age_seconds", queue="generate") == 0


async def test_a_second_scrape_in_a_moment_asks_the_database_nothing(store: Store) -> None:
    """Given figures just read, then they are told again."""
    backlog = BacklogGauges(store.database)
    await store.log.subscribe("s")
    await backlog.refresh()
    await store.log.commit(Batch(appends=[some_append()]))
    await backlog.refresh()
    assert gauge("df_projection_lag_events", subscription="s") == 0


async def test_what_the_database_does_not_tell_in_time_is_left_out(store: Store) -> None:
    """Given a table that another has locked, then the scrape goes on without; and with them when the lock is gone."""
    backlog = BacklogGauges(store.database)
    await store.log.subscribe("s")
    metrics.LAG_EVENTS.labels("s").set(7)
    other = await connect(store.database.url)
    try:
        async with other.transaction():
            await other.execute("lock table eventstore.checkpoints in access exclusive mode")
            await backlog.refresh()
            assert gauge("df_projection_lag_events", subscription="s") is None
    finally:
        await other.close()
    await backlog.refresh()
    assert gauge("df_projection_lag_events", subscription="s") == 0


async def test_without_a_database_the_gauges_are_left_out(store: Store) -> None:
    """Given figures from before, then they are taken back when the database is away."""
    metrics.LAG_EVENTS.labels("s").set(7)
    await store.database.close()
    await BacklogGauges(store.database).refresh()
    assert gauge("df_projection_lag_events", subscription="s") is None
