"""A database of an earlier release is migrated to this one, with its jobs in flight."""

import asyncio
from pathlib import Path

import asyncpg
import pytest
from pgmq import get_embedded_install_sql

from dreamforge.schema import install
from eventstore import schema
from eventstore.database import Database
from eventstore.ids import new_id
from eventstore.log import Batch, CheckpointMove, Log, Send
from eventstore.outbox import Claim, Outbox
from orchestrator import step_command
from orchestrator.step_command import StepCommand
from tests.kit import connect, some_append

EARLIER = Path(__file__).parent.parent / "corpus" / "schema"
"""schema.sql as each earlier release installed it."""

_CATALOG = {
    "columns": """
        select table_schema, table_name, column_name, data_type, column_default, is_nullable
        from information_schema.columns where table_schema in ('eventstore', 'projector', 'readmodel')
        order by 1, 2, 3""",
    "constraints": """
        select conrelid::regclass::text, conname, pg_get_constraintdef(oid) from pg_constraint
        where connamespace = any (array['eventstore', 'projector', 'readmodel']::regnamespace[]) order by 1, 2""",
    "indexes": """
        select tablename, indexname, indexdef from pg_indexes
        where schemaname in ('eventstore', 'projector', 'readmodel') order by 1, 2""",
    "views": """
        select viewname, definition from pg_views
        where schemaname in ('eventstore', 'projector', 'readmodel') order by 1""",
    "functions": """
        select oid::regprocedure::text, pg_get_functiondef(oid), proacl::text from pg_proc
        where pronamespace = any (array['eventstore', 'projector', 'readmodel']::regnamespace[]) order by 1""",
    "triggers": """
        select tgrelid::regclass::text, tgname, tgenabled, pg_get_triggerdef(oid) from pg_trigger
        where not tgisinternal order by 1, 2""",
    "rights and storage": """
        select oid::regclass::text, relacl::text, reloptions from pg_class
        where relnamespace = any (array['eventstore', 'projector', 'readmodel']::regnamespace[])
            and relkind in ('r', 'v')
        order by 1""",
}


async def install_earlier(url: str, release: int) -> None:
    """The database as an earlier release left it."""
    connection = await connect(url)
    await connection.execute(get_embedded_install_sql())
    await connection.execute((EARLIER / f"release-{release}.sql").read_text())
    await connection.close()


async def catalog(url: str) -> dict[str, list[tuple[object, ...]]]:
    """All that the two schemas consist of."""
    connection: asyncpg.Connection = await connect(url)
    found = {part: [tuple(row) for row in await connection.fetch(query)] for part, query in _CATALOG.items()}
    await connection.close()
    return found


@pytest.mark.parametrize("release", range(1, schema.RELEASE))
async def test_a_migrated_schema_equals_a_new_one(empty_url: str, db_url: str, release: int) -> None:
    """Given any earlier release, then what the migrations lead to is schema.sql, to the last right and index."""
    await install_earlier(empty_url, release)
    database = Database(empty_url)
    assert await install(database)
    assert not await install(database)
    await schema.check_release(database)
    await database.close()
    migrated, new = await catalog(empty_url), await catalog(db_url)
    for part, rows in new.items():
        assert migrated[part] == rows, part


@pytest.mark.parametrize("release", range(1, schema.RELEASE))
async def test_jobs_in_flight_outlive_a_migration(empty_url: str, release: int) -> None:
    """Given commands, claims and checkpoints of an earlier release, then they are kept as they were."""
    await install_earlier(empty_url, release)
    database = Database(empty_url)
    await database.execute_once("select eventstore.subscribe('orchestrator')")
    connection = await connect(empty_url)
    one = some_append()
    log = Log(database)
    partition = one.stream.bytes[-1] & 7
    command = StepCommand(job_id=one.stream, step_id=new_id(), step="generate", version=1)
    sends = [Send(stream=one.stream, queue="generate", message=command)]
    moves = [CheckpointMove(subscription="orchestrator", partition=partition, start=0, end=0)]
    answers = await log.commit(Batch(appends=[one], sends=sends, moves=moves))
    assert answers.moves[partition].position == 1
    # As a runner of release 1 claims; today's calls a function that only release 2 has.
    [row] = await database.execute_once(
        "select queue, msg_id, read_ct, enqueued_at from eventstore.claim(array['generate'], array[0], 1, 60)"
    )
    claim = Claim(**row, command=command, expires_at_s=0)

    assert await install(database)

    assert (await log.checkpoints("orchestrator"))[partition] == 1
    assert await Outbox(database, ["generate"], step_command.decode).extend([claim], 60) == []
    more = some_append(one.stream, expected=1)
    moves = [CheckpointMove(subscription="orchestrator", partition=partition, start=1, end=1)]
    answers = await log.commit(Batch(appends=[more], acks=[claim.ack()], moves=moves))
    assert answers.streams[one.stream].committed
    assert (await log.checkpoints("orchestrator"))[partition] == 2
    assert await connection.fetchval("select count(*) from pgmq.q_generate") == 0
    await connection.close()
    await database.close()


@pytest.mark.parametrize("release", [3, 4])
async def test_a_commit_that_waits_during_the_migration_is_written(empty_url: str, release: int) -> None:
    """Given a commit of an earlier release that waits for a partition's lock, then it is written after it."""
    await install_earlier(empty_url, release)
    database = Database(empty_url)
    one = some_append()
    holder = await connect(empty_url)
    async with holder.transaction():
        await holder.execute("select pg_advisory_xact_lock(1685218930, $1)", one.stream.bytes[-1] & 7)
        waiting = asyncio.create_task(Log(database).commit(Batch(appends=[one])))
        await asyncio.sleep(0.5)
        assert await install(database)
        assert not waiting.done()
    assert (await waiting).streams[one.stream].committed
    await holder.close()
    await database.close()
