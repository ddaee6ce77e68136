"""Prefer: wait, and DF_EAGER: an answer that comes when the job has ended."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from artifacts.object_store import S3Config
from tests.conftest import Backends, fresh_database
from tests.http.conftest import BODY, Scribe, consumer, running, succeeded
from tests.kit import Api, History

LONG = BODY | {"width": 512, "height": 512, "count": 8, "chain": {"upscale": {"scale": 2}}}


@pytest.fixture(scope="module")
def working(backends: Backends, s3_config: S3Config) -> Iterator[Api]:
    """A service that works, and does not wait unless asked to."""
    with fresh_database(backends) as url, running("up", url, s3_config) as service, consumer(service) as api:
        yield api


@pytest.fixture(scope="module")
def eager(backends: Backends, s3_config: S3Config) -> Iterator[Api]:
    """One that waits always, by the old name of the setting."""
    with (
        fresh_database(backends) as url,
        running("up", url, s3_config, DF_CELERY_EAGER="true") as service,
        consumer(service) as api,
    ):
        yield api


def timed(call: Any) -> tuple[float, httpx.Response]:
    """How long a call took, and its answer."""
    began = time.monotonic()
    answer: httpx.Response = call()
    return time.monotonic() - began, answer


def test_a_post_is_answered_when_its_job_has_ended(working: Api) -> None:
    """200, since it reports a job that has ended, and the preference that was honoured."""
    answer = working.post(LONG, Prefer="wait=50")
    assert (answer.status_code, answer.json()["job"]["status"]) == (200, "succeeded")
    assert answer.headers["Preference-Applied"] == "wait=50"
    job = working.job(answer.json()["job"]["id"])
    assert answer.headers["ETag"] == f'"v{job["version"]}"'


def test_a_get_is_answered_when_the_job_has_ended(working: Api) -> None:
    job_id = working.create(width=512, height=512, count=8)
    answer = working.http.get(f"/v1/jobs/{job_id}", headers={"Prefer": "wait=50"})
    assert (answer.status_code, answer.json()["status"]) == (200, "succeeded")
    assert answer.headers["Preference-Applied"] == "wait=50"


def test_who_goes_away_cancels_nothing(working: Api) -> None:
    with pytest.raises(httpx.ReadTimeout):
        working.http.post(
            "/v1/jobs", json=LONG | {"metadata": {"who": "left"}}, headers={"Prefer": "wait=50"}, timeout=0.1
        )

    def ended() -> bool:
        return all(job["status"] == "succeeded" for job in working.get("/v1/jobs")["jobs"])

    deadline = time.monotonic() + 60
    while not ended():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_wait_that_is_too_short_answers_the_current_status(lone: Api) -> None:
    """202 after N seconds, the job as it is then."""
    took, answer = timed(lambda: lone.post(BODY, Prefer="wait=1"))
    assert (answer.status_code, answer.json()["job"]["status"]) == (202, "queued")
    assert answer.headers["Preference-Applied"] == "wait=1"
    assert took >= 1
    path = f"/v1/jobs/{answer.json()['job']['id']}"
    took, answer = timed(lambda: lone.http.get(path, headers={"Prefer": "respond-async, wait=1"}))
    assert (answer.status_code, answer.json()["status"], took >= 1) == (200, "queued", True)
    took, answer = timed(lambda: lone.post(BODY, Prefer="wait=0"))
    assert (answer.status_code, answer.headers["Preference-Applied"]) == (202, "wait=0")


@pytest.mark.parametrize("given", ["wait=61", "wait=600", "WAIT = 999", 'wait="120"; foo=bar'])
async def test_a_wait_is_60_seconds_at_most(lone: Api, scribe: Scribe, given: str) -> None:
    job_id = await scribe.write(succeeded())
    answer = lone.http.get(f"/v1/jobs/{job_id}", headers={"Prefer": given})
    assert (answer.status_code, answer.headers["Preference-Applied"]) == (200, "wait=60")


@pytest.mark.parametrize(
    "given", ["", "wait", "wait=", "wait=x", "wait=-1", "wait=1.5", "waiting=5", "return=minimal", ";,="]
)
def test_a_malformed_preference_is_ignored(lone: Api, given: str) -> None:
    took, answer = timed(lambda: lone.post(BODY, Prefer=given))
    assert answer.status_code == 202
    assert "Preference-Applied" not in answer.headers
    assert took < 5


async def test_a_waiting_read_sees_the_end_that_another_server_wrote(lone: Api, scribe: Scribe) -> None:
    """And tells it with the newest ETag."""
    whole = succeeded(count=1)
    early = History.__new__(History)
    early.job_id, early.events = whole.job_id, whole.events[:3]
    job_id = await scribe.write(early)
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(httpx.get, f"{lone.base}/v1/jobs/{job_id}", headers={"Prefer": "wait=20"}, timeout=30)
        await scribe.write(whole, after=3)
        answer = waiting.result()
    assert (answer.json()["status"], answer.headers["ETag"]) == ("succeeded", f'"v{len(whole.events)}"')


def test_an_eager_service_answers_the_ended_job(eager: Api) -> None:
    """DF_EAGER, or DF_CELERY_EAGER as it was called: every POST waits, and answers 200."""
    answer = eager.post(LONG)
    assert (answer.status_code, answer.json()["job"]["status"]) == (200, "succeeded")
    assert "Preference-Applied" not in answer.headers
    assert eager.job(answer.json()["job"]["id"])["status"] == "succeeded"


def test_an_eager_service_waits_so_long_and_no_longer(old: Api) -> None:
    """DF_EAGER_TIMEOUT_S, here 0.3; the answer then tells of the job as it is."""
    took, answer = timed(lambda: old.post(BODY))
    assert answer.json()["job"]["status"] == "queued"
    assert 0.3 <= took < 5
