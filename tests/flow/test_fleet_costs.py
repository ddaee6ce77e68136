"""How many notifications, wake-ups and claims a chained job costs in a fleet of eight runners: counted, and bounded."""

import asyncio
from collections import Counter
from contextlib import AsyncExitStack
from typing import Any

import asyncpg
import httpx
import pytest

from artifacts.object_store import S3Config
from dreamforge import process, roles
from dreamforge.settings import load_settings
from eventstore.database import Database
from eventstore.notifier import LOG_CHANNEL, Notifier, queue_channel
from eventstore.outbox import SEATS
from tests.kit import TERMINAL, eventually, roles_environ
from tests.pooler import listens

RUNNERS = 8
JOBS = 10
COMMANDS = 2
"""Of a chained job."""

MOST_CLAIMS = COMMANDS * (SEATS + 1)
"""Those with a seat may all look for a command, and who has run it looks again."""

MOST_NOTIFICATIONS = 6
"""One on each channel that a commit has changed and others listen to: four appends of runners, two commands."""

MOST_WAKE_UPS = COMMANDS * SEATS + 5
"""A command's reach the runners with seats; those of the runners' appends reach the API's process."""

if not listens():
    pytest.skip("without LISTEN nobody is woken", allow_module_level=True)


class CountingDatabase(Database):
    """Counts the claims that are made through it."""

    def __init__(self, url: str, counts: Counter[str]) -> None:
        super().__init__(url, listen_url=url, max_connections=2)
        self._counts = counts

    async def execute_once(self, sql: str, *args: object, seconds: float | None = None) -> list[Any]:
        if "eventstore.claim(" in sql:
            self._counts["claims"] += 1
        return await super().execute_once(sql, *args, seconds=seconds)


async def test_a_job_costs_a_fleet_few_claims_and_wake_ups(
    db_url: str, s3_config: S3Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Given eight runners of one slot that poll seldom, when lone jobs run, then count."""
    monkeypatch.setattr("runners.consumer._POLL_INTERVAL_S", 60.0)
    counts: Counter[str] = Counter()
    received = Notifier._on_notification

    def count_received(notifier: Notifier, *notification: Any) -> None:
        counts["wake-ups"] += notification[-1] != notifier._id
        received(notifier, *notification)

    monkeypatch.setattr(Notifier, "_on_notification", count_received)
    settings, _ = load_settings(roles_environ(db_url, s3_config, DF_RUNNER_SLOTS="1", DF_POLL_S="60"))
    listener = await asyncpg.connect(db_url)
    for channel in (LOG_CHANNEL, *map(queue_channel, ("generate", "upscale"))):
        await listener.add_listener(channel, lambda *_: counts.update(["notifications"]))
    async with AsyncExitStack() as stack:
        stack.push_async_callback(listener.close)
        stopping = asyncio.Event()

        def context() -> process.ProcessContext:
            database = CountingDatabase(db_url, counts)
            made = process.ProcessContext(settings, database, stopping)
            for close in (database.close, made.notifier.stop, made.committer.stop):
                stack.push_async_callback(close)
            made.notifier.start()
            return made

        core = context()
        for role in (roles._api, roles._orchestrator):
            await role(core, stack)
        for _ in range(RUNNERS):
            await roles._runner(context(), stack)
        http = await stack.enter_async_context(httpx.AsyncClient(base_url=core.url, trust_env=False, timeout=90))
        body = {"type": "generate", "prompt": "x", "width": 16, "height": 16, "chain": {"upscale": {}}}
        await _run(http, body)
        await _listening(core.database)
        counts.clear()
        for _ in range(JOBS):
            await _run(http, body)
        found = dict(counts)
        stopping.set()
    with capsys.disabled():
        print(f"\nper chained job in a fleet of {RUNNERS}: { {name: n / JOBS for name, n in found.items()} }")  # noqa: T201
    assert found["claims"] <= JOBS * MOST_CLAIMS
    assert found["notifications"] <= JOBS * MOST_NOTIFICATIONS
    assert found["wake-ups"] <= JOBS * MOST_WAKE_UPS


async def _run(http: httpx.AsyncClient, body: object) -> None:
    answer = await http.post("/v1/jobs", json=body, headers={"Prefer": "wait=60"})
    assert answer.json()["job"]["status"] in TERMINAL


async def _listening(database: Database) -> None:
    """Wait until as many runners listen as there are seats, beside the API's process and the test."""
    query = "select count(*) from pg_stat_activity where datname = current_database() and query like 'LISTEN%'"

    async def are_there() -> bool:
        [row] = await database.read(query)
        return bool(row["count"] == SEATS + 2)

    await eventually(are_there, what="the sessions that listen")
