"""Idempotency-Key: one key, one job, one answer."""

import asyncio
import hashlib
import json
from collections import Counter
from typing import Any

import httpx
import pytest

from artifacts.object_store import S3Config
from eventstore.ids import derive_id, new_id
from tests import poison
from tests.http.conftest import BODY, Scribe, invalid, rejected, running
from tests.kit import Api

UPSCALE = {"type": "upscale"}


def key() -> str:
    """A key that nobody had before."""
    return f"key {new_id()}"


def once(api: Api, body: object, given: str) -> httpx.Response:
    """POST with a key."""
    return api.post(body, **{"Idempotency-Key": given})


def test_a_repeated_request_gets_the_same_answer(lone: Api, tuned: Api) -> None:
    """To the byte, on any server, and says that it is a repetition."""
    given = key()
    first = once(lone, BODY, given)
    assert first.status_code == 202
    assert "Idempotency-Replayed" not in first.headers
    for again in (once(lone, BODY, given), once(tuned, BODY, given)):
        assert (again.status_code, again.content) == (first.status_code, first.content)
        assert again.headers["Idempotency-Replayed"] == "true"
        assert [again.headers[name] for name in ("Location", "ETag")] == [first.headers["Location"], '"v1"']


def test_another_body_is_a_conflict(lone: Api) -> None:
    """Its details name the header and the job; nothing new comes of it."""
    given = key()
    job_id = once(lone, BODY, given).json()["job"]["id"]
    changes: list[dict[str, Any]] = [
        {"seed": 1},
        {"prompt": "a ruin"},
        {"metadata": {"a": "b"}},
        {"chain": {"upscale": {}}},
    ]
    for change in changes:
        details = rejected(once(lone, BODY | change, given), 409, "conflict")
        assert details == {"field": "Idempotency-Key", "job_id": job_id}
    assert len(lone.history(job_id)) == 1


async def test_a_job_that_cannot_be_read_is_no_conflict(lone: Api, lone_url: str) -> None:
    """Whether it is the same request can't be told: the client is to try again."""
    given = key()
    job = derive_id(b"default", given.encode())
    await poison.append(lone_url, job, 0, *poison.UNKNOWN_VALUE)
    assert rejected(once(lone, BODY, given), 503, "infra_unavailable") == {"job_id": str(job)}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (BODY, BODY | {"chain": None, "seed": None, "metadata": None}),
        (BODY, BODY | {"chain": {"upscale": None}, "width": 64.0}),
        (BODY, dict(reversed(BODY.items()))),
        ({"pipeline": [BODY, UPSCALE]}, BODY | {"chain": {"upscale": {"impl": "image"}}}),
        (
            {"pipeline": [BODY, UPSCALE]},
            {"pipeline": [BODY, UPSCALE | {"mode": "image", "scale": None}], "prompt": None},
        ),
    ],
)
def test_the_same_request_may_be_written_in_another_way(lone: Api, one: dict[str, Any], other: dict[str, Any]) -> None:
    given = key()
    assert once(lone, one, given).content == once(lone, other, given).content


def test_the_answer_stays_the_original_one_as_the_job_goes_on(api: Api) -> None:
    given = key()
    first = once(api, BODY, given)
    api.finished(first.json()["job"]["id"])
    assert once(api, BODY, given).content == first.content


def test_different_keys_are_different_jobs_and_none_is_no_key(lone: Api) -> None:
    jobs = [once(lone, BODY, key()), once(lone, BODY, key()), lone.post(BODY), lone.post(BODY)]
    assert len({answer.json()["job"]["id"] for answer in jobs}) == 4


@pytest.mark.parametrize(("given", "good"), [("k", True), ("k" * 255, True), ("", False), ("k" * 256, False)])
def test_a_key_has_1_to_255_characters(lone: Api, given: str, good: bool) -> None:  # noqa: FBT001
    answer = once(lone, BODY, given)
    if good:
        assert answer.status_code == 202
    else:
        invalid(answer, "Idempotency-Key")


async def test_of_the_key_only_its_sha_256_is_stored(lone: Api, scribe: Scribe) -> None:
    given = key()
    job_id = once(lone, BODY, given).json()["job"]["id"]
    data = json.loads(lone.history(job_id)[0]["data"])
    assert data["idempotency"]["key_sha256"] == hashlib.sha256(given.encode()).hexdigest()
    rows = await scribe.store.database.read("select e::text from eventstore.events as e where stream_id = $1", job_id)
    assert given not in str(rows)


def test_a_rejected_request_does_not_use_its_key_up(lone: Api) -> None:
    given = key()
    invalid(once(lone, BODY | {"width": 1}, given), "width")
    assert once(lone, BODY, given).status_code == 202


async def test_a_hundred_at_once_on_two_servers_are_one_job(
    lone: Api, lone_url: str, s3_config: S3Config, scribe: Scribe
) -> None:
    """Given 100 concurrent POSTs with one key over two API processes: one job, 100 equal answers, one of them first."""
    given = {"Idempotency-Key": key()}
    limits = httpx.Limits(max_connections=100)
    with running("api", lone_url, s3_config) as second:
        async with httpx.AsyncClient(timeout=60, trust_env=False, limits=limits) as client:
            urls = [f"{base}/v1/jobs" for base in (lone.base, second.url)]
            before = await jobs(scribe)
            answers = await asyncio.gather(*(client.post(urls[n % 2], json=BODY, headers=given) for n in range(100)))
            assert Counter(answer.status_code for answer in answers) == {202: 100}
            assert len({answer.content for answer in answers}) == 1
            assert sum("Idempotency-Replayed" not in answer.headers for answer in answers) == 1
            assert await jobs(scribe) == before + 1
            for url in urls:
                rejected(await client.post(url, json=BODY | {"seed": 1}, headers=given), 409, "conflict")
            assert await jobs(scribe) == before + 1


async def jobs(scribe: Scribe) -> int:
    """How many jobs the log holds."""
    rows = await scribe.store.database.read("select count(*) from eventstore.events where version = 1")
    return int(rows[0][0])


def test_a_key_in_quotes_is_another_key(lone: Api) -> None:
    """Given one client that quotes its key, as the IETF's draft writes it, and one that does not, then two jobs.

    Jobs under keys of both kinds are in logs: taken for one, a repetition would be another job after an upgrade.
    """
    given = key()
    first, quoted = once(lone, BODY, given), once(lone, BODY, f'"{given}"')
    assert first.json()["job"]["id"] != quoted.json()["job"]["id"]
    assert once(lone, BODY, f'"{given}"').content == quoted.content
