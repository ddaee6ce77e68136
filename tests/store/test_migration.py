"""A database of an earlier release is migrated to this one, with its jobs in flight."""

import asyncio
from pathlib import Path

import asyncpg
import pytest
from pgmq import get_embedded_install_sql

from dreamforge.operations.erasure import _TABLES_WITH_TEXT_SQL
from dreamforge.schema import install
from eventstore import schema
from eventstore.committer import Committer, Transition
from eventstore.database import Database
from eventstore.errors import DatabaseUnavailable
from eventstore.ids import new_id
from eventstore.log import Append, Batch, CheckpointMove, Log, Send
from eventstore.notifier import Notifier
from eventstore.outbox import Claim, Outbox
from orchestrator import codec, step_command
from orchestrator.events import PersonalText
from orchestrator.step_command import StepCommand
from tests.kit import connect, event, eventually, job_created, some_append, stream_in

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
        select oid::regclass::text, relacl::text, reloptions, pg_get_expr(relpartbound, oid) from pg_class
        where relnamespace = any (array['eventstore', 'projector', 'readmodel']::regnamespace[])
            and relkind in ('r', 'p', 'v')
        order by 1""",
}

_WAITS_FOR = "select exists (select from pg_locks where mode = $1 and not granted)"
_COUNT_WAITERS = "select count(*) >= $1 from pg_locks where mode = 'AccessShareLock' and not granted"
# Only of rows that VACUUM keeps.
_ROWS_WITH_TEXT = """
select count(*) from generate_series(0, pg_relation_size($1::text::regclass) / 8192 - 1) as page,
    heap_page_items(get_raw_page($1, page::integer)) as item
where position('castle number'::bytea in item.t_data) > 0
"""


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


@pytest.mark.parametrize("release", [3, 4, 5])
async def test_a_commit_in_progress_is_written_before_the_migration(empty_url: str, release: int) -> None:
    """Given a commit of an earlier release that waits for a partition's lock, then the migration waits for it."""
    await install_earlier(empty_url, release)
    database = Database(empty_url)
    first = event(job_created(), private=PersonalText(prompt="a castle"))
    one = Append(stream=new_id(), category="job", expected=0, events=(first,))
    holder = await connect(empty_url)
    async with holder.transaction():
        await holder.execute("select pg_advisory_xact_lock(1685218930, $1)", one.stream.bytes[-1] & 7)
        commit = asyncio.create_task(Log(database).commit(Batch(appends=[one])))
        await eventually(lambda: holder.fetchval(_WAITS_FOR, "ExclusiveLock"))
        migration = asyncio.create_task(install(database))
        await eventually(lambda: holder.fetchval(_WAITS_FOR, "AccessExclusiveLock"))
    assert (await commit).streams[one.stream].committed
    assert await migration
    [read] = await Log(database).read_stream(one.stream)
    assert codec.decode_private(read).prompt == "a castle"
    assert await holder.fetchval("select count(*) from eventstore.private") == 1
    await holder.close()
    await database.close()


@pytest.mark.parametrize("release", [3, 4, 5])
async def test_a_commit_that_comes_during_the_migration_is_repeated(empty_url: str, release: int) -> None:
    """Given a commit of an earlier release that waits for the migration, then its caller writes it after it."""
    await install_earlier(empty_url, release)
    database, direct = Database(empty_url), Database(empty_url)
    notifier = Notifier(database)
    committer = Committer(Log(database), notifier)
    one, another = some_append(), some_append()
    reader = await connect(empty_url)
    async with reader.transaction():
        await reader.fetch("select from eventstore.events")
        migration = asyncio.create_task(install(database))
        await eventually(lambda: reader.fetchval(_WAITS_FOR, "AccessExclusiveLock"))
        once = asyncio.create_task(Log(direct).commit(Batch(appends=[another])))
        repeated = asyncio.create_task(committer.commit(Transition(append=one)))
        await eventually(lambda: reader.fetchval(_COUNT_WAITERS, 2))
    assert await migration
    with pytest.raises(DatabaseUnavailable, match="migrated"):
        await once
    assert (await repeated).committed
    await committer.stop()
    await notifier.stop()
    await reader.close()
    for used in (database, direct):
        await used.close()


@pytest.mark.parametrize("release", range(1, schema.RELEASE))
async def test_personal_text_moves_to_a_table_of_its_own(empty_url: str, release: int) -> None:
    """Given events with text, and one that was erased, then all read as before; no row of the log holds the text."""
    await install_earlier(empty_url, release)
    database = Database(empty_url)
    log = Log(database)
    texts = [event(job_created(), private=PersonalText(prompt=f"castle number {n}")) for n in range(40)]
    appends = [Append(stream=new_id(), category="job", expected=0, events=(one,)) for one in texts]
    await log.commit(Batch(appends=[*appends, some_append()]))
    await database.execute_once("select eventstore.erase($1)", appends[0].stream)
    before = await database.read("select * from eventstore.events order by partition, position")
    connection = await connect(empty_url)
    await connection.execute("create extension pageinspect")
    assert await connection.fetchval(_ROWS_WITH_TEXT, "eventstore.events") == 39

    assert await install(database)

    assert await database.read("select * from eventstore.events order by partition, position") == before
    assert await connection.fetchval("select count(*) from eventstore.private where text like '%castle%'") == 39
    tables = [row["name"] for row in await database.read(_TABLES_WITH_TEXT_SQL, [])]
    assert tables == ["eventstore.envelopes_to_4194304", "eventstore.private", "readmodel.jobs"]
    await connection.execute("vacuum eventstore.envelopes_to_4194304")
    assert await connection.fetchval(_ROWS_WITH_TEXT, "eventstore.envelopes_to_4194304") == 0
    await database.execute_once("select eventstore.erase($1)", appends[1].stream)
    assert [one.private for one in await log.read_stream(appends[1].stream)] == [None]
    await connection.close()
    await database.close()


async def test_the_first_leaf_holds_what_the_log_had(empty_url: str) -> None:
    """Given a head beyond the middle of a leaf, then the first leaf ends a whole leaf later."""
    await install_earlier(empty_url, 5)
    connection, database = await connect(empty_url), Database(empty_url)
    one = some_append(stream_in(3))
    await Log(database).commit(Batch(appends=[one]))
    await connection.execute("alter table eventstore.events disable trigger user")
    await connection.execute("update eventstore.events set position = 2097152")
    await connection.execute("alter table eventstore.events enable always trigger append_only_rows")
    assert await install(database)
    assert await connection.fetchval("select leaf_end from eventstore.log") == 8388608
    await Log(database).commit(Batch(appends=[some_append(one.stream, expected=1)]))
    rows = await connection.fetch("select position from eventstore.envelopes_to_8388608 order by position")
    assert [row["position"] for row in rows] == [2097152, 2097153]
    await connection.close()
    await database.close()
