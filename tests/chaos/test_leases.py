"""Leases: what a dead runner leaves is taken up elsewhere, what a living one holds is not, a zombie is rejected."""

import asyncio
import json
import os
import signal
import time
from contextlib import AsyncExitStack, ExitStack
from datetime import UTC, datetime
from typing import Any, NamedTuple

import pytest
from msgspec.structs import replace
from PIL import Image

from artifacts.object_store import S3Config
from dreamforge import process, roles
from dreamforge.settings import load_settings
from eventstore.database import Database
from runners.consumer import visibility_s
from runners.generation import GenerateWorker
from runners.worker import StepItem
from tests.flow.test_fleet import Fleet, assert_exactly_once
from tests.kit import Api, Metrics, Service, eventually, roles_environ

LEASE_S = os.environ.get("DF_TEST_LEASE_S", "15")
"""Of the runner that is killed; the default is the service's own."""

SLOW_LEASE_S = 6.0
ITEMS = 8
LARGE = {"count": ITEMS, "width": 768, "height": 768}


class Start(NamedTuple):
    """One attempt at a step."""

    attempt: int
    runner: str
    ts: datetime


def starts(api: Api, job_id: str) -> list[Start]:
    """The attempts at a job's step generate."""
    found = [one for one in api.history(job_id) if (one["code"], one["step"]) == ("step.start", "generate")]
    told = [(json.loads(one["data"]), one["ts"]) for one in found]
    return [Start(data["attempt"], data["runner"], datetime.fromisoformat(ts)) for data, ts in told]


def until_started(api: Api, job_id: str, attempts: int) -> list[Start]:
    """The attempts, once there are so many."""
    deadline = time.monotonic() + 120
    while len(found := starts(api, job_id)) < attempts:
        assert time.monotonic() < deadline, f"only {len(found)} attempts of {attempts}"
        time.sleep(0.02)
    return found


def owner(runners: list[Service], start: Start) -> Service:
    """Which of the runners made an attempt."""
    [found] = [one for one in runners if start.runner.endswith(f"-{one.process.pid}")]
    return found


def under_way(api: Api, job_id: str) -> None:
    """Wait until a job's first item is written."""
    while api.get(f"/v1/jobs/{job_id}/progress")["progress"] == 0:
        time.sleep(0.02)


def test_a_killed_runners_step_starts_elsewhere_within_the_lease(
    db_url: str, s3_config: S3Config, capsys: pytest.CaptureFixture[str]
) -> None:
    """Given two runners, when the one at work is killed, then the other starts the step; how soon, is told."""
    with ExitStack() as stack:
        fleet = Fleet(roles_environ(db_url, s3_config, DF_LEASE_S=LEASE_S, DF_RUNNER_SLOTS="1"), stack)
        api = fleet.api()
        fleet.start("orchestrator")
        runners = [fleet.start("runner") for _ in range(2)]
        job_id = api.create(**LARGE)
        under_way(api, job_id)
        doomed = owner(runners, starts(api, job_id)[0])
        killed = datetime.now(UTC)
        doomed.kill()
        second = until_started(api, job_id, 2)[1]
        took = (second.ts - killed).total_seconds()
        with capsys.disabled():
            print(f"\n{took:.1f} s from SIGKILL to the start elsewhere, with a lease of {LEASE_S} s")  # noqa: T201  # for docs
        assert second.attempt == 2
        assert owner(runners, second) is not doomed
        assert api.finished(job_id, within=120)["status"] == "succeeded"
        assert_exactly_once(api.history(job_id), ITEMS)


def slowly(worker: GenerateWorker, item: StepItem) -> Image.Image:
    """Take ten times the visibility for one picture."""
    time.sleep(10 * visibility_s(SLOW_LEASE_S))
    return RENDER(worker, item)


RENDER = GenerateWorker.render


async def test_a_step_ten_times_longer_than_the_visibility_runs_once(
    db_url: str, s3_config: S3Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given a runner with a slow engine and an idle one that waits for work, then there is one attempt."""
    monkeypatch.setattr(GenerateWorker, "render", slowly)
    environ = roles_environ(db_url, s3_config)
    settings = replace(load_settings(environ)[0], lease_s=SLOW_LEASE_S)
    database = Database(settings.db_url or "")
    with ExitStack() as processes:
        fleet = Fleet(environ, processes)
        api = await asyncio.to_thread(fleet.api)
        fleet.start("orchestrator")
        async with AsyncExitStack() as stack:
            stack.push_async_callback(database.close)
            core = process.ProcessContext(settings, database, asyncio.Event())
            stack.push_async_callback(core.committer.stop)
            await roles._runner(core, stack)
            job_id = await asyncio.to_thread(api.create, scale=None)
            await asyncio.to_thread(until_started, api, job_id, 1)
            idle = fleet.start("runner")
            await asyncio.to_thread(lambda: idle.health_url)

            async def done() -> Any:
                return [
                    one["status"] for one in [await asyncio.to_thread(api.job, job_id)] if one["summary"]["completed"]
                ]

            await eventually(done, within=180, what="the slow step's end")
        job = await asyncio.to_thread(api.finished, job_id)
        assert [(one.attempt, one.runner) for one in starts(api, job_id)] == [(1, core.actor)]
        assert job["status"] == "succeeded"


def test_a_frozen_runners_late_appends_are_rejected(db_url: str, s3_config: S3Config) -> None:
    """Given a runner frozen past its lease, when it wakes, then it is rejected, says so, and nothing is there twice."""
    with ExitStack() as stack:
        fleet = Fleet(roles_environ(db_url, s3_config, DF_LEASE_S="4", DF_RUNNER_SLOTS="1"), stack)
        api = fleet.api()
        fleet.start("orchestrator")
        runners = [fleet.start("runner") for _ in range(2)]
        urls = {id(one): one.health_url for one in runners}
        job_id = api.create(**LARGE)
        under_way(api, job_id)
        zombie = owner(runners, starts(api, job_id)[0])
        zombie.process.send_signal(signal.SIGSTOP)
        try:
            second = until_started(api, job_id, 2)[1]
            assert owner(runners, second) is not zombie
        finally:
            zombie.process.send_signal(signal.SIGCONT)
        assert api.finished(job_id, within=120)["status"] == "succeeded"
        assert_exactly_once(api.history(job_id), ITEMS)
        assert rejections(zombie, urls[id(zombie)]) >= 1


def rejections(runner: Service, url: str) -> float:
    """How often a runner was fenced off or lost a lease, by its metrics; its log must say so, too."""
    deadline = time.monotonic() + 60
    while not any('"fenced off"' in line or '"lease lost"' in line for line in runner.lines):
        assert time.monotonic() < deadline, f"the runner does not say that it was refused:\n{runner.output}"
        time.sleep(0.05)
    metrics = Metrics(url)
    return (metrics.value("df_fenced_total") or 0) + (metrics.value("df_leases_lost_total") or 0)
