"""GET /v1/jobs: the newest first, page by page."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from artifacts.object_store import S3Config
from orchestrator.events import JobFinish
from tests.conftest import Backends, fresh_database
from tests.http.conftest import BODY, Scribe, consumer, invalid, minute, running, succeeded, until
from tests.kit import Api, History, Store

STATUSES = ["queued", "running", "succeeded", "failed", "cancelled"]


def history(status: Any) -> History:
    """A job that stands so."""
    if status == "succeeded":
        return succeeded()
    job = History(count=2)
    if status != "queued":
        job.started("generate").wrote("generate", 0)
    return job.finished("generate", status).add(JobFinish(status=status)) if status in {"failed", "cancelled"} else job


async def fill(url: str) -> list[str]:
    """Three jobs of each status, all of a status created at the same moment; answers their ids in the list's order."""
    store = Store(url, listen=False)
    scribe = Scribe(store)
    order: list[tuple[int, str]] = []
    for hour, status in enumerate(STATUSES):
        for _ in range(3):
            job = history(status)
            order.append((hour, await scribe.write(job, times=[minute(60 * hour + n) for n in range(len(job.events))])))
    await store.close()
    return [job_id for _, job_id in sorted(order, reverse=True)]


class Listed:
    """An API, its database, and its jobs in the order in which they are to be listed."""

    def __init__(self, api: Api, ids: list[str]) -> None:
        self.api = api
        self.ids = ids

    def page(self, **params: Any) -> Any:
        """One page."""
        return self.api.get("/v1/jobs", **params)

    def walk(self, cursor: str | None, **params: Any) -> list[str]:
        """The ids of all pages."""
        found: list[str] = []
        while True:
            page = self.page(**params, **({} if cursor is None else {"cursor": cursor}))
            found += [job["id"] for job in page["jobs"]]
            cursor = page["next_cursor"]
            if cursor is None:
                return found


@pytest.fixture(scope="module")
def listed(backends: Backends, s3_config: S3Config) -> Iterator[Listed]:
    """An API and a projector."""
    with (
        fresh_database(backends) as url,
        running("projector", url, s3_config),
        running("api", url, s3_config) as service,
    ):
        ids = asyncio.run(fill(url))
        with consumer(service) as api:
            found = Listed(api, ids)
            until(lambda: len(found.page(status="cancelled")["jobs"]) == 3 and len(found.page()["jobs"]) == 15)
            yield found


def test_the_newest_come_first_and_of_those_the_largest_id(listed: Listed) -> None:
    page = listed.page()
    assert [job["id"] for job in page["jobs"]] == listed.ids
    assert page["next_cursor"] is None
    assert page.keys() == {"jobs", "next_cursor"}


def test_each_job_is_told_in_few_words(listed: Listed) -> None:
    for job in listed.page()["jobs"]:
        whole = listed.api.job(job["id"])
        own = {name: whole[name] for name in ("id", "type", "status", "created_at", "updated_at", "summary")}
        assert job == own | {"prompt": whole["params"]["prompt"]}


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 14, 15])
def test_pages_follow_one_another_without_gap_or_repetition(listed: Listed, limit: int) -> None:
    """Also where several jobs were created at the same moment."""
    assert listed.walk(None, limit=limit) == listed.ids


def test_the_last_page_has_no_next(listed: Listed) -> None:
    assert listed.page(limit=14)["next_cursor"] is not None
    assert listed.page(limit=15)["next_cursor"] is None


@pytest.mark.parametrize(("limit", "answered"), [(0, 1), (-5, 1), (200, 15), (201, 15), (10**9, 15)])
def test_a_limit_is_clamped(listed: Listed, limit: int, answered: int) -> None:
    assert len(listed.page(limit=limit)["jobs"]) == answered


@pytest.mark.parametrize("status", STATUSES)
def test_the_list_may_be_of_one_status(listed: Listed, status: str) -> None:
    assert [job["status"] for job in listed.page(status=status)["jobs"]] == [status] * 3
    assert len(listed.walk(None, status=status, limit=2)) == 3


def test_a_cursor_of_another_kind_is_rejected(listed: Listed) -> None:
    cursor = listed.api.get("/v1/events")["next_cursor"]
    for text in (cursor, listed.page(limit=1)["next_cursor"] + "A"):
        invalid(listed.api.http.get("/v1/jobs", params={"cursor": text}), "cursor")


def test_what_comes_in_meanwhile_moves_nothing(listed: Listed) -> None:
    """A cursor goes on where its page ended. (Last: it leaves jobs behind.)"""
    first = listed.page(limit=4)
    new = {listed.api.post(BODY).json()["job"]["id"] for _ in range(30)}
    until(lambda: listed.page(limit=1)["jobs"][0]["id"] in new)
    assert listed.walk(first["next_cursor"], limit=4) == listed.ids[4:]
    until(lambda: len(listed.walk(None, limit=200)) == 45)
    assert len(listed.page()["jobs"]) == 20
