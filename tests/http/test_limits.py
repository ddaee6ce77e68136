"""How much may come in: admission, and each tenant's share."""

import asyncio
import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from api.admission import CachedCount, TokenBucket
from artifacts.object_store import S3Config
from eventstore.ids import new_id
from eventstore.log import DEFAULT_TENANT, Append, Batch
from orchestrator.events import RetryRequested
from projections.admission_queries import OPEN_JOBS_SQL
from tests.conftest import Backends, fresh_database
from tests.http.conftest import BODY, consumer, rejected, running, until
from tests.kit import Api, Store, event, job_created, some_append, stream_in

FULL = 3


@pytest.fixture
def closing(backends: Backends, s3_config: S3Config) -> Iterator[Api]:
    """An API, and an orchestrator, with room for three waiting jobs; nobody works on them."""
    with (
        fresh_database(backends) as url,
        running("orchestrator", url, s3_config),
        running("api", url, s3_config, DF_MAX_QUEUED_JOBS=str(FULL)) as service,
        consumer(service) as api,
    ):
        yield api


def test_admission_closes_when_too_much_waits(closing: Api) -> None:
    """503, with Retry-After; what is there can be read and cancelled, and room that is made is given."""
    jobs = [closing.create() for _ in range(FULL)]
    answer = closing.post(BODY)
    assert rejected(answer, 503, "infra_unavailable") == {"reason": "admission is closed", "limit": FULL}
    assert int(answer.headers["Retry-After"]) > 0
    assert closing.job(jobs[0])["status"] == "queued"
    assert closing.http.post(f"/v1/jobs/{jobs[0]}/cancel").status_code == 202


def test_a_repeated_request_is_answered_while_admission_is_closed(closing: Api) -> None:
    """It brings no new work."""
    headers = {"Idempotency-Key": "again"}
    first = closing.post(BODY, **headers)
    for _ in range(FULL - 1):
        closing.create()
    assert closing.post(BODY).status_code == 503
    again = closing.post(BODY, **headers)
    assert (again.status_code, again.content) == (202, first.content)


def test_a_refusal_does_not_read_the_request(closing: Api) -> None:
    """While admission is closed, an invalid request is refused like any other; with a key, it is looked at."""
    for _ in range(FULL):
        closing.create()
    assert closing.post({"type": "nonsense"}).status_code == 503
    assert closing.post({"type": "nonsense"}, **{"Idempotency-Key": "k"}).status_code == 422


async def test_the_time_until_a_retry_follows_the_rate_at_which_the_queue_drains(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Given a count that falls by 40 in 2 s while 20 are added, then 300 more are gone in 10 s; 60 s at most."""
    now, told = 100.0, [100, 60, 60]
    monkeypatch.setattr("api.admission.time", SimpleNamespace(monotonic=lambda: now))

    async def ask() -> int:
        return told.pop(0)

    count = CachedCount(ask)
    await count.refresh_if_stale()
    assert count.fall_time_s(300) == 5.0  # not known yet
    for _ in range(20):
        with count.count_one_more():
            pass
    now += 2
    await count.refresh_if_stale()
    assert count.fall_time_s(300) == 10.0
    assert count.fall_time_s(1_000_000) == 60.0
    now += 2
    await count.refresh_if_stale()
    assert count.fall_time_s(1) == 60.0


async def flood(base: str, rejection: int, *, admitted: int) -> int:
    """Submit forty jobs at once, until so many have come in, and once more; answers how many did."""
    accepted, floods = 0, 0
    async with httpx.AsyncClient(base_url=base, timeout=60, limits=httpx.Limits(), trust_env=False) as client:
        while accepted < admitted or floods < 2:
            answers = await asyncio.gather(*(client.post("/v1/jobs", json=BODY) for _ in range(40)))
            statuses = [answer.status_code for answer in answers]
            assert set(statuses) <= {202, rejection}
            accepted, floods = accepted + statuses.count(202), floods + 1
    return accepted


@pytest.mark.parametrize(("limit", "rejection"), [("DF_MAX_QUEUED_JOBS", 503), ("DF_TENANT_MAX_QUEUED_JOBS", 429)])
def test_a_limit_holds_from_the_first_request_on(db_url: str, s3_config: S3Config, limit: str, rejection: int) -> None:
    """Given a process that has just started, then of many jobs at once only as many come in as may wait.

    One that is started over its limit lets none in. No orchestrator reacts to the jobs, and no projector sees them.
    """
    given = {limit: "20", "DF_DB_CONNECTIONS": "2"}
    for admitted in (20, 0):
        with running("api", db_url, s3_config, **given) as service:
            assert asyncio.run(flood(service.url, rejection, admitted=admitted)) == admitted


async def test_a_count_is_known_before_anybody_is_let_in() -> None:
    """Given a question that is under way, then all wait for its answer; a question that failed is asked again."""
    asked, told = asyncio.Event(), asyncio.get_running_loop().create_future()

    async def ask() -> int:
        asked.set()
        return int(await told)

    count = CachedCount(ask)
    waiting = [asyncio.create_task(count.refresh_if_stale()) for _ in range(3)]
    await asked.wait()
    assert not any(task.done() for task in waiting)
    told.set_result(7)
    await asyncio.gather(*waiting)
    assert count.estimate == 7


async def test_a_count_keeps_what_its_answer_cannot_hold() -> None:
    """Given jobs that are written while the question is under way, then the answer does not make them forgotten."""
    asked, told = asyncio.Event(), asyncio.get_running_loop().create_future()

    async def ask() -> int:
        asked.set()
        return int(await told)

    count = CachedCount(ask)
    with count.count_one_more():
        pass  # written before the question, which will tell of it
    asking = asyncio.create_task(count.refresh_if_stale())
    await asked.wait()
    with count.count_one_more():
        pass
    with count.count_one_more():
        told.set_result(1)
        await asking
        assert count.estimate == 3
    assert count.estimate == 3


@pytest.fixture
def narrow(backends: Backends, s3_config: S3Config) -> Iterator[Api]:
    """A whole service on which each tenant may have two open jobs."""
    with (
        fresh_database(backends) as url,
        running("up", url, s3_config, DF_TENANT_MAX_QUEUED_JOBS="2") as service,
        consumer(service) as api,
    ):
        yield api


def test_a_tenant_may_have_so_many_open_jobs(narrow: Api) -> None:
    """429 until one of them has ended."""
    slow = {"width": 2048, "height": 2048, "count": 20}
    jobs = [narrow.create(scale=None, **slow) for _ in range(2)]
    answer = narrow.post(BODY)
    rejected(answer, 429, "rate_limited")
    assert int(answer.headers["Retry-After"]) > 0
    for job in jobs:
        narrow.http.post(f"/v1/jobs/{job}/cancel")
    until(lambda: narrow.post(BODY).status_code == 202, within=60)


def test_a_retry_needs_room_like_a_new_job(backends: Backends, s3_config: S3Config) -> None:
    """429 until the tenant's open job has ended."""
    more = {"DF_TENANT_MAX_QUEUED_JOBS": "1", "DF_FAKE_FAIL": "upscale:0:1", "DF_MAX_ATTEMPTS": "1"}
    with (
        fresh_database(backends) as url,
        running("up", url, s3_config, **more) as service,
        consumer(service) as api,
    ):
        failed = api.create(count=1)
        assert api.finished(failed)["status"] == "failed"

        def submitted() -> str | None:
            answer = api.post(BODY | {"width": 2048, "height": 2048, "count": 20})
            return answer.json()["job"]["id"] if answer.status_code == 202 else None

        slow = until(submitted)
        retry = f"/v1/jobs/{failed}/retry"
        until(lambda: api.http.post(retry).status_code == 429)
        rejected(api.http.post(retry), 429, "rate_limited")
        api.http.post(f"/v1/jobs/{slow}/cancel")
        until(lambda: api.http.post(retry).status_code == 202, within=60)


@pytest.fixture
def paced(backends: Backends, s3_config: S3Config) -> Iterator[Api]:
    """An API that gives each tenant one request in a hundred seconds."""
    with (
        fresh_database(backends) as url,
        running("api", url, s3_config, DF_TENANT_RATE="0.01") as service,
        consumer(service) as api,
    ):
        yield api


def test_who_asks_too_often_is_told_when_to_come_back(paced: Api) -> None:
    """429 with Retry-After; probes are not counted, and a stream answers 200, a `retry:` and its end."""
    assert paced.http.get("/v1/jobs").status_code == 200
    answer = paced.http.get("/v1/jobs")
    rejected(answer, 429, "rate_limited")
    assert 1 <= int(answer.headers["Retry-After"]) <= 100
    assert paced.http.get("/healthz").status_code == 200
    stream = paced.http.get("/v1/events/stream")
    assert stream.status_code == 200
    assert stream.text.startswith("retry: ")
    assert "data:" not in stream.text


def test_a_bucket_gives_what_it_holds_and_fills_again() -> None:
    """Two seconds' worth at once, then so many a second."""
    bucket = TokenBucket(2.0, 100.0)
    assert [bucket.acquire(100.0) for _ in range(4)] == [0, 0, 0, 0]
    assert bucket.acquire(100.0) == pytest.approx(0.5)
    assert bucket.acquire(100.5) == 0
    assert bucket.acquire(100.5) == pytest.approx(0.5)
    assert [bucket.acquire(1000.0) for _ in range(4)] == [0, 0, 0, 0]
    assert bucket.acquire(1000.0) > 0


async def test_a_projector_that_stands_makes_no_scan_of_a_count(store: Store) -> None:
    """Given more events than that which no projector has seen, then a thousand a partition are looked at."""
    await store.log.subscribe("readmodel")
    await store.log.commit(Batch(appends=[some_append(stream_in(0), count=1500)]))
    async with store.database.connection() as connection:
        plan = await connection.fetchval(f"explain (analyze, format json) {OPEN_JOBS_SQL}", DEFAULT_TENANT, 20)
    found = nodes(json.loads(plan)[0]["Plan"])
    rows = [node["Actual Rows"] for node in found if node.get("Relation Name", "").startswith("envelopes_to_")]
    assert 0 < max(rows) <= 1000


async def test_what_no_projector_has_seen_counts_by_job(store: Store) -> None:
    """Given a projector that stands a thousand events back, then new jobs count, and retried ones: each once."""
    await store.log.subscribe("readmodel")
    long, made, retried = stream_in(0), stream_in(0), stream_in(1)
    await store.log.commit(Batch(appends=[some_append(long, count=1500)]))
    retry = event(RetryRequested(step_id=new_id(), step_name="generate"))
    again = event(RetryRequested(step_id=new_id(), step_name="generate"))
    await store.log.commit(
        Batch(appends=[Append(stream=made, category="job", expected=0, events=(event(job_created()), again))])
    )
    await store.log.commit(Batch(appends=[some_append(retried)]))
    await store.log.commit(Batch(appends=[Append(stream=retried, category="job", expected=1, events=(retry,))]))
    async with store.database.connection() as connection:
        assert await connection.fetchval(OPEN_JOBS_SQL, DEFAULT_TENANT, 20) == 2


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A query's plan and all below it."""
    yield plan
    for below in plan.get("Plans", []):
        yield from nodes(below)
