"""What was answered is on the synchronous standby: no failover loses a job whose POST got its 202."""

import asyncio
from collections.abc import Coroutine, Iterator
from typing import Any, TypeVar
from urllib.parse import urlsplit
from uuid import UUID

import httpx
import pytest

from artifacts.object_store import S3Config
from dreamforge.schema import install
from eventstore import schema
from eventstore.database import Database
from eventstore.errors import DatabaseAccessDenied, DatabaseUnavailable
from eventstore.ids import new_id
from eventstore.log import Append, Batch, CheckpointMove, Log, Send
from eventstore.subscription import Subscription
from orchestrator import codec
from orchestrator.decisions import RequestCancel
from orchestrator.events import CancelRequested, Meta
from orchestrator.process_manager import Orchestrator
from orchestrator.quarantine_log import Quarantine
from orchestrator.reconciler import OutboxReconciler
from orchestrator.service import JobService
from orchestrator.step_command import StepCommand
from tests import poison
from tests.conftest import database_named, execute
from tests.kit import (
    SERVICE_LOGIN,
    Service,
    Store,
    connect,
    dreamforge,
    event,
    eventually,
    job_created,
    roles_environ,
    some_append,
)
from tests.standby import Pair

T = TypeVar("T")

JOB = {"type": "generate", "prompt": "a castle", "width": 64, "height": 64}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """A primary that waits for its standby, with our schema."""
    pair = Pair(tmp_path_factory.mktemp("pair"))
    yield pair
    pair.stop()


@pytest.fixture
async def primary(pair: Pair) -> str:
    """A database of one's own on the primary, whose commits wait for the standby."""
    if pair.standby is None:
        pair.regain()
    await pair.demand(demanded=False)
    name = f"df_{new_id().hex[-16:]}"
    connection = await connect(pair.url)
    await connection.execute(f"create database {name}")
    await connection.close()
    url = database_named(pair.url, name)
    database = Database(url)
    await install(database)
    await schema.ensure_service_login(database, *SERVICE_LOGIN)
    await database.close()
    await pair.demand()
    return url


def database_name(url: str) -> str:
    """The name of the database that a URL leads to."""
    return urlsplit(url).path.removeprefix("/")


async def cancelled(pair: Pair, work: asyncio.Task[Any]) -> int:
    """Cancel whatever waits for the standby until some work ends; answers how many waits were cancelled."""
    count = 0
    while not work.done():
        count += await pair.cancel_waits()
        await asyncio.sleep(0.05)
    return count


async def cut_short(pair: Pair, work: Coroutine[Any, Any, Any]) -> None:
    """Let some work wait for the standby, cancel the wait, and see that it counts as no success."""
    task = asyncio.ensure_future(work)
    assert await cancelled(pair, task) > 0
    with pytest.raises(DatabaseUnavailable, match="standby"):
        await task


async def expect_waits(pair: Pair, work: Coroutine[Any, Any, T]) -> T:
    """See that some work waits for the standby, let it come back, and answer what the work does."""
    task = asyncio.ensure_future(work)
    await eventually(pair.waits, what="a commit that waits for the standby")
    assert not task.done()
    pair.regain()
    return await task


async def test_a_repeated_commit_waits_for_the_standby(primary: str, pair: Pair) -> None:
    """Given a wait that was cut short, then the repeat finds its events, and waits until they are safe.

    Also where a command was sent with them, which is not sent again.
    """
    database = Database(primary)
    appended = some_append()
    command = StepCommand(job_id=appended.stream, step_id=new_id(), step="generate", version=1)
    sent = Send(stream=appended.stream, queue="generate", message=command)
    log, batch = Log(database), Batch(appends=[appended], sends=[sent])
    pair.lose()
    await cut_short(pair, log.commit(batch))
    answers = await expect_waits(pair, log.commit(batch))
    assert answers.streams[batch.appends[0].stream].verdict == "already_committed"
    await database.close()


async def test_a_cancelled_wait_is_heard_of_whatever_the_logins_settings(primary: str, pair: Pair) -> None:
    """Given a login from which the server keeps warnings, then they come all the same, or no pooler is gone through."""
    await execute(primary, f"alter database {database_name(primary)} set client_min_messages = error")
    pooled = Database(primary, pooled=True)
    with pytest.raises(DatabaseAccessDenied, match="client_min_messages"):
        await pooled.execute_once("select 1")
    await pooled.close()
    database = Database(primary)
    pair.lose()
    await cut_short(pair, Log(database).commit(Batch(appends=[some_append()])))
    await database.close()


async def test_a_repeated_request_waits_for_the_standby(primary: str, pair: Pair) -> None:
    """Given a cancel whose wait was cut short, then asking again decides nothing, and waits all the same."""
    store = Store(primary)
    created = Append(stream=new_id(), category="job", expected=0, events=(event(job_created()),))
    await store.log.commit(Batch(appends=[created]))
    pair.lose()
    cancel = Append(stream=created.stream, category="job", expected=1, events=(event(CancelRequested()),))
    await cut_short(pair, store.log.commit(Batch(appends=[cancel])))
    jobs = JobService(store.log, store.committer, "test")
    asked = jobs.commit_request("default", created.stream, RequestCancel(), Meta())
    assert (await expect_waits(pair, asked)).cancel_pending
    await store.close()


async def test_a_repeated_rebuild_of_the_outbox_waits_for_the_standby(primary: str, pair: Pair) -> None:
    """Given a rebuild whose last wait was cut short, then the repeat finds nothing lost, and waits all the same."""
    store = Store(primary)
    await store.log.subscribe("orchestrator")
    body = job_created()
    created = Append(stream=new_id(), category="job", expected=0, events=(event(body),))
    move = CheckpointMove(subscription="orchestrator", partition=created.stream.bytes[-1] & 7, start=0, end=0)
    await store.log.commit(Batch(appends=[created], moves=[move]))
    pair.lose()
    command = StepCommand(job_id=created.stream, step_id=body.steps[0].step_id, step="generate", version=1)
    sends = [Send(stream=created.stream, queue="generate", message=command)]
    await cut_short(pair, store.log.commit(Batch(sends=sends)))
    assert await expect_waits(pair, OutboxReconciler(store.database, "test").rebuild(0)) == []
    await store.close()


async def test_a_repeated_command_on_a_job_set_aside_waits_for_the_standby(
    primary: str, pair: Pair, s3_config: S3Config
) -> None:
    """Given a job that was left failed, then erased, and is in no read model, then each again waits all the same."""
    store, job = Store(primary), new_id()
    await poison.append(primary, job, 0, *poison.UNKNOWN_VALUE)
    await Quarantine(store.log, "test").quarantine_job(job, "default", reader="test", at_version=1, reason="poison")
    await store.close()
    environ = roles_environ(primary, s3_config, DF_DB_URL=primary, DF_LEASE_S="4")
    for command in (["jobs", "quarantine", "fail"], ["audit", "erase"]):
        assert dreamforge(*command, str(job), **environ).returncode == 0
        pair.lose()
        again = asyncio.to_thread(dreamforge, *command, str(job), **environ)
        assert (await expect_waits(pair, again)).returncode == 0


async def test_a_repeated_install_waits_for_the_standby(primary: str, pair: Pair) -> None:
    """Given a database that has the schema, then an install that does nothing waits all the same."""
    database = Database(primary)
    pair.lose()
    assert not await expect_waits(pair, install(database))
    await database.close()


async def test_many_who_ask_whether_it_is_safe_keep_one_connection(primary: str, pair: Pair) -> None:
    """Given a hundred who ask while the standby is away, then reads find a connection; and all are answered."""
    database = Database(primary)
    log = Log(database)
    pair.lose()
    asking = asyncio.gather(*(log.confirm_replicated() for _ in range(100)))
    await eventually(pair.waits, what="a commit that waits for the standby")
    assert await database.read("select count(*) as waits from pg_stat_activity where wait_event = 'SyncRep'") == [(1,)]
    pair.regain()
    await asking
    await database.close()


async def test_a_subscription_builds_on_nothing_that_waits(primary: str, pair: Pair) -> None:
    """Given a checkpoint whose move was cut short, then the subscription waits before it goes on from there."""
    store = Store(primary)
    await store.log.subscribe("orchestrator")
    appended = some_append()
    partition = appended.stream.bytes[-1] & 7
    pair.lose()
    move = CheckpointMove(subscription="orchestrator", partition=partition, start=0, end=0)
    await cut_short(pair, store.committer.commit_batch(Batch(appends=[appended], moves=[move])))
    subscription = Subscription(
        store.log, store.notifier, Orchestrator(store.log, store.committer, "test"), codec.is_known
    )
    await expect_waits(pair, subscription.poll_once())
    assert subscription.cursors[partition].checkpoint == 1
    await store.close()


async def test_what_was_accepted_survives_the_primary(primary: str, pair: Pair, s3_config: S3Config) -> None:
    """Given a standby that is away, and an operator who cancels the waits, then nobody hears 202; and no 202 is lost.

    Neither by the first call, whose wait is cancelled, nor by a repeat that finds its job in the log.
    """
    service = Service("api", roles_environ(primary, s3_config))
    accepted: list[str] = []
    try:
        async with httpx.AsyncClient(base_url=service.url, timeout=60, trust_env=False) as client:

            async def post(key: str) -> httpx.Response:
                answer = await client.post("/v1/jobs", json=JOB, headers={"Idempotency-Key": key})
                if answer.status_code == 202:
                    accepted.append(answer.json()["job"]["id"])
                return answer

            assert (await post("before")).status_code == 202
            pair.lose()
            first = asyncio.create_task(post("away"))
            assert await cancelled(pair, first) > 0
            assert (await first).status_code == 503
            # It stands in the primary's log by now; whoever asks again must not be told that it is safe.
            again = asyncio.create_task(post("away"))
            assert await cancelled(pair, again) > 0
            assert (await again).status_code == 503

            pair.regain()
            replayed = await post("away")
            assert (replayed.status_code, replayed.headers["Idempotency-Replayed"]) == (202, "true")

            pair.lose()
            lost = asyncio.create_task(post("lost"))
            await cancelled(pair, lost)
            assert (await lost).status_code == 503
    finally:
        service.kill()
    promoted = await connect(database_named(await pair.fail_over(), database_name(primary)))
    there = {row["stream_id"] for row in await promoted.fetch("select stream_id from eventstore.events")}
    await promoted.close()
    assert set(map(UUID, accepted)) == there
