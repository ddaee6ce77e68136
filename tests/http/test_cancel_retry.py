"""POST /v1/jobs/{id}/cancel and /retry."""

import json
from collections.abc import Iterator

import httpx
import pytest

from artifacts.object_store import S3Config
from orchestrator.events import JobFinish
from tests.conftest import Backends, fresh_database
from tests.http.conftest import Scribe, consumer, rejected, running, succeeded, until
from tests.kit import Api, codes

FAILED = JobFinish(status="failed")
LARGE = {"width": 512, "height": 512, "count": 60}


@pytest.fixture(scope="module")
def working(backends: Backends, s3_config: S3Config) -> Iterator[Api]:
    """A service of which every upscale fails twice at its second item."""
    hasty = {"DF_FAKE_FAIL": "upscale:1:2", "DF_RETRY_BASE_S": "0.02", "DF_RUNNER_SLOTS": "1"}
    with fresh_database(backends) as url, running("up", url, s3_config, **hasty) as service, consumer(service) as api:
        yield api


def ask(api: Api, job_id: str, action: str) -> httpx.Response:
    """POST a command without a body."""
    return api.http.post(f"/v1/jobs/{job_id}/{action}")


def status(answer: httpx.Response) -> tuple[int, str]:
    """The answer's status and the job's; its form is that of POST /v1/jobs."""
    job = answer.json()["job"]
    assert job.keys() == {"id", "status", "type", "created_at", "links"}
    assert answer.headers["ETag"].startswith('"v')
    return answer.status_code, job["status"]


def test_a_queued_step_never_starts_and_a_running_one_stops_at_its_next_item(working: Api) -> None:
    """Given a runner of one slot that is busy, when both jobs are cancelled, then neither is worked on any longer."""
    busy = working.create(**LARGE)
    until(lambda: working.artifacts(busy))
    waiting = working.create(**LARGE)  # not before: of two that come at once either may be first
    assert status(ask(working, waiting, "cancel")) in {(202, "queued"), (202, "cancelled")}
    assert ask(working, busy, "cancel").status_code == 202
    jobs = {name: working.finished(job_id) for name, job_id in (("busy", busy), ("waiting", waiting))}
    for job in jobs.values():
        assert (job["status"], job["error_code"]) == ("cancelled", "cancelled")
        assert [step["status"] for step in job["steps"]] == ["cancelled", "cancelled"]
    assert "step.start" not in codes(working.history(waiting))
    written = working.artifacts(busy)
    assert 1 <= len(written) < 60
    assert httpx.get(written[0]["url"], trust_env=False).status_code == 200, "what is written stays"
    assert "upscale" not in {event["step"] for event in working.history(busy)}
    assert codes(working.history(busy)).count("job.cancel_requested") == 1
    for _ in range(2):
        assert status(ask(working, busy, "cancel")) == (200, "cancelled")
    assert codes(working.history(busy)).count("job.cancel_requested") == 1, "repeating it adds no event"
    rejected(ask(working, busy, "retry"), 409, "conflict")


def test_a_repeated_cancel_adds_no_event_while_it_is_pending(lone: Api) -> None:
    """Where no orchestrator runs, it stays pending."""
    job_id = lone.create()
    for _ in range(3):
        assert status(ask(lone, job_id, "cancel")) == (202, "queued")
    assert codes(lone.history(job_id)) == ["job.created", "job.cancel_requested"]


def test_a_retry_runs_the_failed_step_again_and_keeps_what_was_written(working: Api) -> None:
    """Given a job whose upscale fails twice, when it is retried twice, then it goes on where it was each time."""
    job_id = working.create(count=3)
    kept: set[str] = set()
    for attempt in (1, 2):
        job = working.finished(job_id)
        assert (job["status"], job["error_code"]) == ("failed", "provider_error")
        assert [(step["status"], step["attempt"]) for step in job["steps"]] == [("succeeded", 1), ("failed", attempt)]
        artifacts = working.artifacts(job_id)
        assert [one["item_index"] for one in artifacts if one["step"] == "upscale"] == [0]
        assert kept <= {one["id"] for one in artifacts}
        kept = {one["id"] for one in artifacts}
        rejected(ask(working, job_id, "cancel"), 409, "conflict")
        assert ask(working, job_id, "retry").status_code == 202
    job = working.finished(job_id)
    assert (job["status"], job["error_code"], job["error_message"]) == ("succeeded", None, None)
    assert [step["attempt"] for step in job["steps"]] == [1, 3]
    assert kept < {one["id"] for one in working.artifacts(job_id)}
    assert job["summary"] == {"count": 3, "completed": 3}
    history = working.history(job_id)
    assert [one["step"] for one in history if one["code"] == "job.retry_requested"] == ["upscale"] * 2
    assert [one["step"] for one in history if one["code"] == "step.start"] == ["generate", *["upscale"] * 3]
    rejected(ask(working, job_id, "retry"), 409, "conflict")


async def test_a_second_retry_while_one_is_pending_is_rejected(lone: Api, scribe: Scribe) -> None:
    """The job is queued again, its error taken back."""
    history = succeeded(count=1)
    del history.events[5:]
    history.started("upscale").finished("upscale", "failed").add(FAILED)
    job_id = await scribe.write(history)
    assert lone.job(job_id)["status"] == "failed"
    assert status(ask(lone, job_id, "retry")) == (202, "queued")
    rejected(ask(lone, job_id, "retry"), 409, "conflict")
    assert codes(lone.history(job_id)).count("job.retry_requested") == 1


@pytest.mark.parametrize("action", ["cancel", "retry"])
async def test_a_job_that_succeeded_stays_so(lone: Api, scribe: Scribe, action: str) -> None:
    job_id = await scribe.write(succeeded())
    before = lone.history(job_id)
    details = rejected(ask(lone, job_id, action), 409, "conflict")
    assert details == {"field": "status", "job_id": job_id}
    assert lone.history(job_id) == before


def test_a_command_has_a_request_id_of_its_own_in_the_log(lone: Api) -> None:
    job_id = lone.create()
    assert lone.http.post(f"/v1/jobs/{job_id}/cancel", headers={"X-Request-Id": "mine"}).status_code == 202
    created, cancelled = (json.loads(event["meta"])["request_id"] for event in lone.history(job_id))
    assert len({created, cancelled, "mine"}) == 3
