"""How many bytes a chained job costs in the log, the tables and the write-ahead log: counted, and bounded.

docs/performance.md shows the figures; `pytest -s tests/flow/test_bytes.py` prints them.
"""

import pytest

from artifacts.object_store import S3Config
from eventstore.database import Database
from tests.kit import Api, Service, eventually, roles_environ

JOBS = 50
WARM_UP_JOBS = 5
WAL_BYTES = 15_500
"""Without full-page images: how many of those there are depends on the checkpoints."""

EVENT_BYTES = 10_000
READ_MODEL_BYTES = 6_000
_SIZES_SQL = """
select n.nspname as schema, sum(pg_total_relation_size(c.oid))::bigint as bytes
from pg_class c join pg_namespace n on n.oid = c.relnamespace
where c.relkind in ('r', 'm') and n.nspname in ('eventstore', 'readmodel') group by 1
"""
_WAL_SQL = "select sum(record_size)::bigint as bytes from pg_get_wal_stats($1, pg_current_wal_flush_lsn())"


async def test_a_chained_job_costs_no_more_bytes_than_stated(
    db_url: str, s3_config: S3Config, capsys: pytest.CaptureFixture[str]
) -> None:
    """Given jobs of one item that run one after the other, so that they share no commit, then count."""
    service, database = Service("up", roles_environ(db_url, s3_config)), Database(db_url)
    api = Api(service.url)
    await database.execute_once("create extension pg_walinspect")
    _run(api, WARM_UP_JOBS)
    await _at_rest(database)
    [start] = await database.execute_once("select pg_current_wal_insert_lsn() as lsn")
    before = await _sizes(database)
    _run(api, JOBS)
    await _at_rest(database)
    after = await _sizes(database)
    [wal] = await database.execute_once(_WAL_SQL, start["lsn"])
    api.close()
    service.stop()
    await database.close()
    grown = {schema: (after[schema] - before[schema]) // JOBS for schema in after}
    with capsys.disabled():
        print(f"\nbytes per chained job: WAL {wal['bytes'] // JOBS}, {grown}")  # noqa: T201  # docs/performance.md quotes it
    assert wal["bytes"] <= JOBS * WAL_BYTES
    assert grown["eventstore"] <= EVENT_BYTES
    assert grown["readmodel"] <= READ_MODEL_BYTES


def _run(api: Api, jobs: int) -> None:
    body = {"type": "generate", "prompt": "a castle", "width": 16, "height": 16, "chain": {"upscale": {"scale": 2}}}
    for _ in range(jobs):
        assert api.post(body, Prefer="wait=60").json()["job"]["status"] == "succeeded"


async def _at_rest(database: Database) -> None:
    """Wait until every subscription has passed every event."""
    query = "select 1 from readmodel.jobs where status <> 'succeeded'"

    async def is_projected() -> bool:
        return not await database.read(query)

    await eventually(is_projected, what="the read model")


async def _sizes(database: Database) -> dict[str, int]:
    return {row["schema"]: row["bytes"] for row in await database.read(_SIZES_SQL)}
