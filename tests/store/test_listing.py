"""The list of jobs, as it is read from the table."""

import pytest

from eventstore.database import Database
from orchestrator.events import Status
from projections.queries import _LARGEST_UUID, _LIST_JOBS_OF_ANY_STATUS_SQL, _LIST_JOBS_OF_ONE_STATUS_SQL, JobQueries


@pytest.mark.parametrize(
    ("status", "index"), [(None, "jobs_listed"), ("succeeded", "jobs_listed"), ("failed", "jobs_by_status")]
)
async def test_a_page_of_the_list_reads_no_more_than_the_page(db_url: str, status: Status | None, index: str) -> None:
    """Given a hundred thousand jobs, then a page in their midst comes from an index in its order, without a sort."""
    database = Database(db_url)
    await database.execute_once(
        "insert into readmodel.jobs select gen_random_uuid(), 'default', 'generate', "
        "case when n % 100 = 0 then 'failed' else 'succeeded' end, now() - n * interval '1 s', now(), 1, 1, '{}', '{}' "
        "from generate_series(1, 100000) as n"
    )
    await database.execute_once("analyze readmodel.jobs")
    statement = _LIST_JOBS_OF_ANY_STATUS_SQL if status in {None, "succeeded"} else _LIST_JOBS_OF_ONE_STATUS_SQL
    async with database.connection() as connection:
        before = await connection.fetchval("select created_at from readmodel.jobs limit 1 offset 50000")
        rows = await connection.fetch(
            f"explain (analyze, costs off) {statement}", "default", status, before, _LARGEST_UUID, _LARGEST_UUID, 20
        )
    plan = "\n".join(row[0] for row in rows)
    assert index in plan, plan
    assert "Sort" not in plan, plan
    listed = await JobQueries(database).list_jobs(
        "default", status=status, older_than=(before, _LARGEST_UUID), limit=20
    )
    assert [one.created_at for one in listed] == sorted((one.created_at for one in listed), reverse=True)
    assert {one.status for one in listed} <= {status or "succeeded", "failed"}
    await database.close()
