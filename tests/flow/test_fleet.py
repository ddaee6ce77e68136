"""Many processes of each role on one database, and one role missing."""

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest

from artifacts.object_store import S3Config
from tests.conftest import execute
from tests.kit import TERMINAL, Api, Service, codes, roles_environ

JOBS = 200


class Fleet:
    """Processes of any roles on one database and one bucket."""

    def __init__(self, environ: dict[str, str], stack: ExitStack) -> None:
        self._environ = environ
        self._stack = stack

    def start(self, role: str) -> Service:
        """One more process."""
        service = Service(role, self._environ)
        self._stack.callback(service.stop)
        return service

    def api(self) -> Api:
        """One more API server, and a consumer of it."""
        api = Api(self.start("api").url)
        self._stack.callback(api.close)
        return api


@pytest.fixture
def fleet(db_url: str, s3_config: S3Config) -> Iterator[Fleet]:
    """No process yet."""
    with ExitStack() as stack:
        yield Fleet(roles_environ(db_url, s3_config, DF_RUNNER_SLOTS="4"), stack)


def assert_exactly_once(history: list[Any], count: int) -> None:
    """Each step finished once, each item written once, the job finished once."""
    seen = Counter(
        (event["code"], event["step"]) for event in history if event["code"] in {"step.finish", "artifact.written"}
    )
    assert seen == {
        ("step.finish", "generate"): 1,
        ("step.finish", "upscale"): 1,
        ("artifact.written", "generate"): count,
        ("artifact.written", "upscale"): count,
    }
    assert codes(history).count("job.finish") == 1
    assert codes(history)[-1] == "job.finish"


def test_many_processes_complete_many_jobs_each_exactly_once_and_reads_are_never_stale(fleet: Fleet) -> None:
    """Given two of each server and four runners, 200 jobs at once, and the projector killed and restarted midway.

    Reads alternate between the servers: what one has told, the other must know.
    """
    apis = [fleet.api(), fleet.api()]
    projectors = [fleet.start("projector") for _ in range(2)]
    for role in ("orchestrator", "orchestrator", "runner", "runner", "runner", "runner"):
        fleet.start(role)
    with ThreadPoolExecutor(16) as pool:
        jobs = list(pool.map(lambda n: apis[n % 2].create(count=2, width=32, height=32), range(JOBS)))
    known = dict.fromkeys(jobs, 0)
    still = list(jobs)
    turn = itertools.cycle(apis)
    deadline = time.monotonic() + 240
    restarted = False
    while still:
        assert time.monotonic() < deadline, f"{len(still)} jobs are not done"
        for job_id in list(still):
            job = next(turn).job(job_id)
            assert job["version"] >= known[job_id] >= 0, "a read went back in time"
            told = next(turn).get(f"/v1/jobs/{job_id}/events", after_version=job["version"] - 1, limit=1)["events"]
            assert told, f"version {job['version']} was told by one server, and is unknown to the other"
            known[job_id] = job["version"]
            if job["status"] in TERMINAL:
                assert job["status"] == "succeeded"
                assert job["summary"]["completed"] == 2
                still.remove(job_id)
        if not restarted and len(still) < JOBS / 2:
            for projector in projectors:
                projector.kill()
            fleet.start("projector")
            restarted = True
    assert restarted
    for job_id in jobs:
        assert_exactly_once(next(turn).history(job_id), 2)


def test_without_a_projector_reads_are_as_fresh_as_ever(fleet: Fleet) -> None:
    """Given no projector at all, then a job is there at once, and its progress can be followed to the end."""
    api = fleet.api()
    fleet.start("orchestrator")
    fleet.start("runner")
    job_id = api.create(count=3)
    assert api.job(job_id)["status"] in {"queued", "running"}
    progress = [one.data["progress"] for one in api.stream(job_id) if one.event == "progress"]
    assert progress == sorted(progress)
    assert progress[-1] == 1.0
    job = api.job(job_id)
    assert (job["status"], job["summary"]["completed"]) == ("succeeded", 3)
    assert api.get(f"/v1/jobs/{job_id}/progress")["progress"] == 1.0
    assert len(api.artifacts(job_id)) == 6
    assert_exactly_once(api.history(job_id), 3)


def test_a_projector_that_starts_late_catches_up(fleet: Fleet) -> None:
    """Given jobs that ran without it, then the tables it fills give the same answers."""
    api = fleet.api()
    fleet.start("orchestrator")
    fleet.start("runner")
    jobs = [api.create(count=2) for _ in range(5)]
    before = [api.finished(job_id) for job_id in jobs]
    fleet.start("projector")
    time.sleep(2)
    assert [api.job(job_id) for job_id in jobs] == before


def test_a_killed_runners_step_is_taken_by_another(db_url: str, s3_config: S3Config) -> None:
    """Given a runner killed in the midst of a step, then another resumes at the first missing item."""
    with ExitStack() as stack:
        fleet = Fleet(roles_environ(db_url, s3_config, DF_LEASE_S="4"), stack)
        api = fleet.api()
        fleet.start("orchestrator")
        fleet.start("projector")
        doomed = fleet.start("runner")
        job_id = api.create(count=12, width=640, height=640)
        while api.get(f"/v1/jobs/{job_id}/progress")["progress"] < 0.1:
            time.sleep(0.02)
        doomed.kill()
        fleet.start("runner")
        job = api.finished(job_id, within=90)
        assert job["status"] == "succeeded"
        history = api.history(job_id)
        assert_exactly_once(history, 12)
        attempts = [event for event in history if event["code"] == "step.start" and event["step"] == "generate"]
        assert len(attempts) == 2


def test_a_command_that_was_sent_twice_does_no_harm(db_url: str, s3_config: S3Config) -> None:
    """Given a second message for a running step, then one run takes over, the other ends, and the job succeeds."""
    with ExitStack() as stack:
        fleet = Fleet(roles_environ(db_url, s3_config, DF_LEASE_S="4", DF_RUNNER_SLOTS="1"), stack)
        api = fleet.api()
        fleet.start("orchestrator")
        for _ in range(2):
            fleet.start("runner")
        job_id = api.create(count=12, width=640, height=640)
        while api.get(f"/v1/jobs/{job_id}/progress")["progress"] < 0.1:
            time.sleep(0.02)
        copy = "select pgmq.send('generate', message) from pgmq.q_generate"
        asyncio.run(execute(db_url, copy))
        assert api.finished(job_id, within=90)["status"] == "succeeded"
        assert_exactly_once(api.history(job_id), 12)


def test_a_stopped_runner_hands_its_step_back_at_once(db_url: str, s3_config: S3Config) -> None:
    """Given SIGTERM in the midst of a step, then the runner finishes its item and gives the rest to the others."""
    with ExitStack() as stack:
        # A lease so long that only a hand-back can explain the other runner's quick start.
        fleet = Fleet(roles_environ(db_url, s3_config, DF_LEASE_S="600"), stack)
        api = fleet.api()
        fleet.start("orchestrator")
        leaving = fleet.start("runner")
        job_id = api.create(count=12, width=640, height=640)
        while api.get(f"/v1/jobs/{job_id}/progress")["progress"] < 0.1:
            time.sleep(0.02)
        assert leaving.stop() == 0
        assert "step.retry" in codes(api.history(job_id))
        fleet.start("runner")
        assert api.finished(job_id, within=90)["status"] == "succeeded"
        assert_exactly_once(api.history(job_id), 12)
