"""Installing the schema: one command, safe to run twice and by two processes at once."""

import asyncio
import re
from uuid import UUID

import pytest

from dreamforge.schema import install
from eventstore import schema
from eventstore.database import Database
from eventstore.errors import SchemaMissing
from eventstore.log import (
    _CHAIN_HASHES_SQL,
    _EVENTS_AFTER_SQL,
    _HEADS_SQL,
    _NEWEST_SQL,
    _STREAM_SQL,
    _STREAMS_SQL,
    CATEGORY_EVENTS_SQL,
    EVENT_COLUMNS,
    Batch,
    Log,
)
from eventstore.metrics import _SUBSCRIPTION_LAGS_SQL
from projections.admission_queries import OPEN_JOBS_SQL
from tests.kit import connect, some_append


async def test_parallel_and_repeated_installs_do_it_once(empty_url: str) -> None:
    """Given four processes that install at once, then one does it, and the schema is whole."""
    databases = [Database(empty_url) for _ in range(4)]
    done = await asyncio.gather(*(install(one) for one in databases))
    assert sorted(done) == [False, False, False, True]
    assert await install(databases[0]) is False
    one = some_append()
    assert (await Log(databases[0]).commit(Batch(appends=[one]))).streams[one.stream].committed
    for database in databases:
        await database.close()


async def test_a_database_without_schema_is_named_as_such(empty_url: str) -> None:
    """Given an empty database, then check and use both say which command is missing."""
    database = Database(empty_url)
    with pytest.raises(SchemaMissing, match="dreamforge schema install"):
        await schema.check_release(database)
    with pytest.raises(SchemaMissing, match="dreamforge schema install"):
        await Log(database).read_head()
    await database.close()


async def test_a_release_that_needs_newer_code_is_not_touched(db_url: str) -> None:
    """Given a database of a later release that serves later code alone, then this one rejects to install or run."""
    database = Database(db_url)
    await database.execute_once("insert into eventstore.releases (release, serves) values (99, 99)")
    for attempt in (install(database), schema.check_release(database)):
        with pytest.raises(SchemaMissing, match="99"):
            await attempt
    await database.close()


async def test_a_later_release_that_still_serves_this_code_is_run_on(db_url: str) -> None:
    """Given a fleet that is upgraded, schema first, then its older processes go on."""
    database = Database(db_url)
    await database.execute_once("insert into eventstore.releases (release, serves) values (99, $1)", schema.RELEASE)
    await schema.check_release(database)
    await database.close()


@pytest.mark.parametrize("partitions", [1, 4, 16])
async def test_the_number_of_partitions_is_set_at_install(empty_url: str, partitions: int) -> None:
    """Given a number of partitions, then streams spread over that many, and no more."""
    database = Database(empty_url)
    await install(database, partitions=partitions)
    log = Log(database)
    await log.commit(Batch(appends=[some_append() for _ in range(200)]))
    heads = [end.position for end in (await log.read_head()).ends.values()]
    assert len(heads) == await log.partitions() == partitions
    assert sum(heads) == 200
    assert min(heads) > 0
    await database.close()


async def test_hot_reads_use_their_indexes(db_url: str) -> None:
    """One stream by version, one partition by position, in each of three leaves: none scans or sorts its table."""
    one, partitions, positions = UUID("018f0000-0000-7000-8000-000000000001"), list(range(8)), [5] * 8
    queries: list[tuple[str, tuple[object, ...]]] = [
        (_STREAM_SQL, (one, 3, None)),
        (_NEWEST_SQL, (one, 1)),
        (_STREAMS_SQL, ([one],)),
        (_EVENTS_AFTER_SQL, (partitions, positions, 100)),
        (_HEADS_SQL, ()),
        (_CHAIN_HASHES_SQL, (partitions, positions)),
        (_SUBSCRIPTION_LAGS_SQL, ()),
        (OPEN_JOBS_SQL, ("default", 10)),
        (CATEGORY_EVENTS_SQL.format(columns=EVENT_COLUMNS, category="model"), ()),
        ("select * from readmodel.steps where job_id = $1 order by ordinal", (one,)),
        ("select * from readmodel.artifacts where job_id = $1", (one,)),
    ]
    connection = await connect(db_url)
    for leaf in (1, 2):
        await connection.execute("select eventstore.add_leaves($1)", leaf * 4194304 - 1)
    await connection.execute("set enable_seqscan = off")
    for query, arguments in queries:
        plan = "\n".join(row[0] for row in await connection.fetch(f"explain {query}", *arguments))
        scanned = set(re.findall(r"(?:Index|Bitmap) .*on (envelopes_to_\d+)", plan))
        assert len(scanned) == 3 or "readmodel" in query, plan
        assert not re.search(r"Seq Scan on (envelopes|private|steps|artifacts)|Subquery Scan on events", plan), plan
        if query in {_NEWEST_SQL, _EVENTS_AFTER_SQL, _HEADS_SQL, _SUBSCRIPTION_LAGS_SQL}:
            # Within a leaf, that is: leaves are in the order of their positions, or merged by version.
            assert not re.search(r"Limit[^\n]*\n\s*->  (Incremental )?Sort", plan), plan
    await connection.close()
