"""Installing the schema: one command, safe to run twice and by two processes at once."""

import asyncio

import pytest

from dreamforge.schema import install
from eventstore import schema
from eventstore.database import Database
from eventstore.errors import SchemaMissing
from eventstore.log import Batch, Log
from tests.kit import some_append


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
