"""What the hot statements read: as the server says of the plans that it ran, those within its functions included."""

import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg

from eventstore.database import Database
from eventstore.ids import new_id
from eventstore.log import Append, Batch, Log, Send
from eventstore.outbox import Outbox
from eventstore.subscription import Subscription
from orchestrator import codec, step_command
from orchestrator.events import StepStart
from orchestrator.step_command import StepCommand
from projections.admission_queries import count_open_jobs
from projections.projector import Projector
from projections.queries import JobQueries
from projections.subscription_status import read_subscription_statuses
from tests import histories
from tests.kit import History, Store, event

JOBS = 2000
COMMANDS = 5000
MOST_ROWS = 300
"""Rows that a statement here may read of a table: pages are of at most 100, histories of some 20 events."""

SMALL_TABLES = {"log", "subscriptions", "checkpoints", "queues", "meta", "processes", "releases", "generation"}
"""Tables that do not grow with the jobs: a scan of their few rows is the best plan."""

Plan = dict[str, Any]


class ExplainedDatabase(Database):
    """Keeps the plans of all statements that it has run."""

    def __init__(self, url: str) -> None:
        super().__init__(url, max_connections=1)
        self.plans: list[Plan] = []

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[asyncpg.pool.PoolConnectionProxy]:
        async with super().connection() as connection:
            connection.add_log_listener(self._keep)
            yield connection
            connection.remove_log_listener(self._keep)

    async def _execute_once(self, sql: str, *args: object) -> list[asyncpg.Record]:
        async with self.connection() as connection:
            return await connection.fetch(sql, *args)  # type: ignore[no-any-return]  # asyncpg ships no types

    async def begin(self) -> None:
        """Explain what follows."""
        async with self.connection() as connection:
            await connection.execute("load 'auto_explain'")
            settings = ("log_min_duration = 0", "log_nested_statements = on", "log_analyze = on", "log_timing = off")
            for setting in (*settings, "log_format = json", "log_level = warning"):
                await connection.execute(f"set auto_explain.{setting}")

    def _keep(self, _: object, message: asyncpg.PostgresLogMessage) -> None:
        _, found, plan = message.message.partition("plan:\n")
        if found:
            self.plans.append(json.loads(plan))


def nodes(plan: Plan) -> Iterator[Plan]:
    """A plan's nodes."""
    yield plan
    for inner in plan.get("Plans", []):
        yield from nodes(inner)


def rows_read(node: Plan) -> float:
    """How many rows a node has read of its table."""
    read = node["Actual Rows"] + node.get("Rows Removed by Filter", 0) + node.get("Rows Removed by Index Recheck", 0)
    return float(read * node["Actual Loops"])


def offences(plan: Plan) -> list[str]:
    """The nodes of a plan that read too much of a table. asyncpg's own queries of the catalogue are left out."""
    return [
        f"{node['Node Type']} of {table} reads {rows_read(node):g} rows: {plan['Query Text'][:200]}"
        for node in nodes(plan["Plan"])
        if (table := node.get("Relation Name")) is not None
        and not (table in SMALL_TABLES or table.startswith("pg_"))
        and (node["Node Type"] == "Seq Scan" or rows_read(node) > MOST_ROWS)
    ]


async def fill(store: Store) -> list[History]:
    """A log, a read model and a queue that are too large to be scanned."""
    rng = random.Random(1)
    drawn = [histories.history(rng) for _ in range(JOBS)]
    for start in range(0, JOBS, 300):
        await store.log.commit(Batch(appends=[histories.append(one) for one in drawn[start : start + 300]]))
    subscription = Subscription(store.log, store.notifier, Projector(store.database), codec.is_known)
    while await subscription.poll_once():
        pass
    for _ in range(COMMANDS // 1000):
        await store.log.commit(Batch(sends=[command() for _ in range(1000)]))
    await store.database.execute_once("analyze")
    return drawn


def command() -> Send:
    """A command of a job."""
    job_id = new_id()
    return Send(
        stream=job_id,
        queue="generate",
        message=StepCommand(job_id=job_id, step_id=new_id(), step="generate", version=1),
    )


async def test_no_hot_statement_reads_more_than_it_needs(store: Store, db_url: str) -> None:
    """Given thousands of jobs and commands, then every statement of the hot paths reads a few rows, by an index."""
    drawn = await fill(store)
    database = ExplainedDatabase(db_url)
    log, queries = Log(database), JobQueries(database)
    await log.partitions()
    known = max(drawn, key=lambda one: len(one.events)).job_id
    ends = {partition: end.position for partition, end in (await log.read_head()).ends.items()}
    newest = {partition: position - 5 for partition, position in ends.items()}
    outbox = Outbox(database, ["generate", "upscale"], step_command.decode)
    new = History()
    listed = (await queries.list_jobs("default", status=None, older_than=None, limit=50))[-1]

    async def append() -> None:
        await log.commit(Batch(appends=[histories.append(new)], sends=[command()]))
        more = event(StepStart(step_id=new.step_id("generate"), step_name="generate", attempt=1, runner="r"))
        await log.commit(Batch(appends=[Append(stream=new.job_id, category="job", expected=1, events=(more,))]))

    async def claim() -> None:
        claims = await outbox.claim(4, 30)
        assert len(claims) == 4
        assert await outbox.extend(claims, 30) == []
        await log.commit(Batch(acks=[one.ack() for one in claims[:2]], defers=[one.defer(5) for one in claims[2:]]))

    async def project() -> None:
        subscription = Subscription(Log(database), store.notifier, Projector(database), codec.is_known)
        while await subscription.poll_once():
            pass

    hot: dict[str, Callable[[], Awaitable[object]]] = {
        "stream": lambda: log.read_stream(known),
        "tail of a stream": lambda: log.read_stream(known, after=2),
        "newest event": lambda: log.newest_event(known),
        "streams": lambda: log.read_streams([one.job_id for one in drawn[:5]]),
        "partitions": lambda: log.read_after(newest, limit=100),
        "heads": log.read_head,
        "chain hashes": lambda: log.chain_hashes(ends),
        "append": append,
        "claim": claim,
        "open jobs": lambda: count_open_jobs(database, "default", 100),
        "job": lambda: queries.job_view("default", known, artifacts=True),
        "list": lambda: queries.list_jobs("default", status=None, older_than=None, limit=21),
        "next page": lambda: queries.list_jobs(
            "default", status=None, older_than=(listed.created_at, listed.job_id), limit=21
        ),
        "list of one status": lambda: queries.list_jobs("default", status="failed", older_than=None, limit=21),
        "project": project,
        "subscriptions": lambda: read_subscription_statuses(database),
    }
    await database.begin()
    found: dict[str, list[str]] = {}
    for name, run in hot.items():
        database.plans.clear()
        await run()
        assert database.plans, f"{name}: no plan was seen"
        bad = [offence for plan in database.plans for offence in offences(plan)]
        if bad:
            found[name] = bad
    await database.close()
    assert found == {}, json.dumps(found, indent=1)
