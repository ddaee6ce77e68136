"""How many commits, and reads of histories, a chained job costs, alone: counted, and bounded.

docs/performance.md shows the table; `pytest -s tests/flow/test_round_trips.py` prints it.
"""

import asyncio
from collections import Counter
from contextlib import AsyncExitStack
from typing import Any

import httpx
import pytest

from artifacts.object_store import S3Config
from dreamforge import process, roles
from dreamforge.settings import load_settings
from eventstore.database import Database
from tests.kit import TERMINAL, eventually, roles_environ

COMMITS = 10
POSTS = 50
HISTORIES = 1
"""Reads of histories: before the first start. The later ones are folded already, where they are needed next."""


class Counted(Database):
    """Counts the statements that it runs, and those among them that write.

    admitted: set while commits may begin. held: how many had to wait for that.
    """

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.statements: Counter[str] = Counter()
        self.commits: Counter[str] = Counter()
        self.admitted = asyncio.Event()
        self.admitted.set()
        self.held = 0

    async def execute_once(self, sql: str, *args: object, seconds: float | None = None) -> list[Any]:
        kind = kind_of(sql)
        if kind == "commit" and not self.admitted.is_set():
            self.held += 1
            await self.admitted.wait()
        rows = await super().execute_once(sql, *args, seconds=seconds)
        self.statements[kind] += 1
        # A claim that finds nothing writes nothing, and has no commit record.
        if kind == "commit" or (kind == "claim" and rows):
            self.commits[kind] += 1
        return rows


def kind_of(sql: str) -> str:
    """What a statement is for."""
    for mark, kind in (
        ("eventstore.commit(", "commit"),
        ("eventstore.claim(", "claim"),
        ("eventstore.extend(", "extend"),
        ("eventstore.floors(", "floors"),
        ("of_partition", "read partitions"),
        ("where stream_id", "read streams"),
    ):
        if mark in sql:
            return kind
    return "other"


async def test_a_lone_chained_job_costs_no_more_than_ten_commits(
    db_url: str, s3_config: S3Config, capsys: pytest.CaptureFixture[str]
) -> None:
    """Given API, orchestrator and runner with no projector, when one job of one item runs, then count."""
    settings, _ = load_settings(roles_environ(db_url, s3_config))
    database = Counted(db_url)
    stopping = asyncio.Event()
    async with AsyncExitStack() as stack:
        core = process.ProcessContext(settings, database, stopping)
        stack.push_async_callback(database.close)
        stack.push_async_callback(core.notifier.stop)
        stack.push_async_callback(core.committer.stop)
        core.notifier.start()
        for role in (roles._shared_tailer, roles._orchestrator, roles._runner, roles._api):
            await role(core, stack)
        http = await stack.enter_async_context(httpx.AsyncClient(base_url=core.url, trust_env=False))
        await asyncio.sleep(1.5)  # start-up, and the first refresh of the queues' minimum msg_id
        database.statements.clear()
        database.commits.clear()
        body = {"type": "generate", "prompt": "x", "width": 64, "height": 64, "chain": {"upscale": {}}}
        job_id = (await http.post("/v1/jobs", json=body)).json()["job"]["id"]

        async def done() -> bool:
            rows = await Database.execute_once(
                database, "select code from eventstore.events where stream_id = $1", job_id
            )
            return any(row["code"] == "job.finish" for row in rows)

        await eventually(done)
        await asyncio.sleep(2.5)  # whatever trails behind counts too
        commits, statements = Counter(database.commits), Counter(database.statements)
        assert (await http.get(f"/v1/jobs/{job_id}")).json()["status"] in TERMINAL
        stopping.set()
    with capsys.disabled():
        print(f"\ncommits {dict(commits)}, statements {dict(statements)}")  # noqa: T201  # docs/performance.md quotes it
    assert commits["claim"] == 2
    assert sum(commits.values()) <= COMMITS
    assert statements["read streams"] <= HISTORIES


async def test_posts_that_arrive_together_share_commits(db_url: str, s3_config: S3Config) -> None:
    """Given a commit that is held up, when 50 POSTs come meanwhile, then one more commit is for all of them."""
    settings, _ = load_settings(roles_environ(db_url, s3_config))
    database = Counted(db_url)
    stopping = asyncio.Event()
    async with AsyncExitStack() as stack:
        core = process.ProcessContext(settings, database, stopping)
        stack.push_async_callback(database.close)
        stack.push_async_callback(core.notifier.stop)
        stack.push_async_callback(core.committer.stop)
        await roles._api(core, stack)
        limits = httpx.Limits(max_connections=None)
        client = httpx.AsyncClient(base_url=core.url, trust_env=False, limits=limits, timeout=60)
        http = await stack.enter_async_context(client)
        body = {"type": "generate", "prompt": "x", "width": 64, "height": 64}
        await http.post("/v1/jobs", json=body)
        database.admitted.clear()
        first = asyncio.create_task(http.post("/v1/jobs", json=body))
        await eventually(lambda: asyncio.sleep(0, database.held == 1))
        posts = [asyncio.create_task(http.post("/v1/jobs", json=body)) for _ in range(POSTS)]
        await eventually(lambda: asyncio.sleep(0, len(core.committer._pending) == POSTS))
        database.admitted.set()
        answers = await asyncio.gather(first, *posts)
        stopping.set()
    assert {answer.status_code for answer in answers} == {202}
    assert database.commits["commit"] == 3
