"""GET /v1/events and its stream: the whole log, for those who tail it."""

import base64
import json
from collections import defaultdict
from typing import Any

import httpx
import pytest

from eventstore.ids import new_id
from runners.objects import S3Config
from tests.http.conftest import Scribe, consumer, invalid, running, succeeded
from tests.kit import Api, History, connect

MEMBERS = {"version", "event_id", "code", "ts", "level", "step", "data", "meta", "hash", "stream", "category"}


def pages(api: Api, **params: Any) -> tuple[list[Any], str]:
    """Every event after a cursor, and the cursor behind the last."""
    events: list[Any] = []
    while True:
        page = api.get("/v1/events", **params)
        assert page.keys() == {"events", "next_cursor", "has_more"}
        events.extend(page["events"])
        params["cursor"] = page["next_cursor"]
        if not page["has_more"]:
            return events, page["next_cursor"]


def blocks(api: Api, count: int, *, last: str | None = None, of: str = "id", **params: Any) -> list[dict[str, str]]:
    """The first blocks of the stream that have a field, each as field and value. last: the Last-Event-ID."""
    found: list[dict[str, str]] = []
    headers = {} if last is None else {"Last-Event-ID": last}
    with api.http.stream("GET", "/v1/events/stream", params=params, headers=headers) as answer:
        assert answer.status_code == 200
        assert answer.headers["Content-Type"] == "text/event-stream; charset=utf-8"
        text = ""
        for chunk in answer.iter_text():
            text += chunk
            *whole, text = text.split("\n\n")
            fields = [dict(line.split(": ", 1) for line in block.split("\n")) for block in whole]
            found.extend(one for one in fields if of in one)
            if len(found) >= count:
                break
    return found[:count]


def messages(api: Api, count: int, **more: Any) -> list[dict[str, str]]:
    """The first messages of the stream."""
    return blocks(api, count, of="data", **more)


async def test_the_pages_are_the_log_each_stream_in_order(lone: Api, scribe: Scribe) -> None:
    """Given jobs whose events lie in several partitions, then paging by sevens meets each event of each once."""
    jobs = {await scribe.write(succeeded(count=3)) for _ in range(6)}
    events, _ = pages(lone, limit=7)
    streams: dict[str, list[Any]] = defaultdict(list)
    for event in events:
        assert event.keys() == MEMBERS
        streams[event["stream"]].append({name: event[name] for name in MEMBERS - {"stream", "category"}})
    assert jobs <= streams.keys()
    for job in jobs:
        assert streams[job] == lone.history(job)


async def test_a_cursor_goes_on_where_a_page_ended(lone: Api, scribe: Scribe) -> None:
    """Given a cursor at the end, then later events alone come after it."""
    await scribe.write(succeeded())
    _, cursor = pages(lone)
    assert pages(lone, cursor=cursor) == ([], cursor)
    job = await scribe.write(succeeded())
    later, _ = pages(lone, cursor=cursor, limit=2)
    assert [(one["stream"], one["version"]) for one in later] == [(job, n + 1) for n in range(len(later))]


async def test_filters_leave_out_the_rest(lone: Api, scribe: Scribe) -> None:
    job = await scribe.write(succeeded(count=4))
    found, _ = pages(lone, codes="step.start,step.finish", limit=3)
    assert {one["code"] for one in found} == {"step.start", "step.finish"}
    assert len([one for one in found if one["stream"] == job]) == 4
    assert [one for one in pages(lone, category="job")[0] if one["stream"] == job]
    assert pages(lone, category="model")[0] == []


@pytest.mark.parametrize("path", ["/v1/events", "/v1/events/stream"])
@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({"cursor": "x"}, "cursor"),
        ({"cursor": ""}, "cursor"),
        ({"cursor": "é"}, "cursor"),
        ({"cursor": base64.urlsafe_b64encode(b"\1" + bytes(16)).rstrip(b"=").decode()}, "cursor"),
        ({"codes": "job.finished"}, "codes"),
        ({"codes": ""}, "codes"),
        ({"category": "jobs"}, "category"),
    ],
)
def test_what_cannot_be_understood_is_named(lone: Api, path: str, params: dict[str, str], field: str) -> None:
    invalid(lone.http.get(path, params=params), field)


@pytest.mark.parametrize("limit", ["0", "1001", "-1", "ten"])
def test_a_pages_size_has_bounds(lone: Api, limit: str) -> None:
    invalid(lone.http.get("/v1/events", params={"limit": limit}), "limit")


def test_the_stream_begins_somewhere_known(lone: Api) -> None:
    invalid(lone.http.get("/v1/events/stream", params={"from": "yesterday"}), "from")


async def test_the_stream_gives_what_the_pages_give(lone: Api, scribe: Scribe) -> None:
    """From the start: messages without a name, each with the cursor behind it."""
    await scribe.write(succeeded())
    expected, _ = pages(lone)
    found = messages(lone, len(expected), **{"from": "start"})
    assert all(list(one) == ["data", "id"] for one in found)
    key = lambda one: (one["stream"], one["version"])  # noqa: E731  # a name for what makes an event one
    assert sorted((json.loads(one["data"]) for one in found), key=key) == sorted(expected, key=key)
    middle = found[len(found) // 2]["id"]
    rest = [json.loads(one["data"]) for one in found[len(found) // 2 + 1 :]]
    assert sorted(pages(lone, cursor=middle)[0], key=key) == sorted(rest, key=key)


async def test_without_more_the_stream_begins_at_the_end(lone: Api, scribe: Scribe) -> None:
    """And its first block says where that is, so that a client cut off before any event still misses none."""
    await scribe.write(succeeded())
    (place,) = blocks(lone, 1)
    assert place == {"id": pages(lone)[1]}
    job = await scribe.write(History().started("generate"))
    found = messages(lone, 2, last=place["id"], **{"from": "now"})
    assert [(json.loads(one["data"])["stream"], json.loads(one["data"])["version"]) for one in found] == [
        (job, 1),
        (job, 2),
    ]


async def test_the_last_event_id_wins_over_a_cursor_over_a_beginning(lone: Api, scribe: Scribe) -> None:
    await scribe.write(History())
    _, earlier = pages(lone)
    job = await scribe.write(History())
    _, later = pages(lone)
    (place,) = blocks(lone, 1, last=later, cursor=earlier, **{"from": "start"})
    assert place == {"id": later}
    (place,) = blocks(lone, 1, last_event_id=later, cursor=earlier)
    assert place == {"id": later}
    (message,) = messages(lone, 1, cursor=earlier, **{"from": "start"})
    assert json.loads(message["data"])["stream"] == job


async def test_heartbeats_move_the_cursor_past_what_a_filter_leaves_out(lone: Api, scribe: Scribe) -> None:
    """A block with only `id:`, which makes no message, and after which nothing is looked at twice."""
    await scribe.write(succeeded())
    place, *heartbeats = blocks(lone, 6, codes="job.retry_requested", **{"from": "start"})
    assert all(one.keys() == {"id"} for one in heartbeats)
    assert heartbeats[-1] != place
    assert pages(lone, cursor=heartbeats[-1]["id"])[0] == []


def test_a_stream_has_no_head(lone: Api) -> None:
    answer = lone.http.head("/v1/events/stream")
    assert (answer.status_code, answer.headers["Allow"]) == (405, "GET")


async def test_a_cursor_of_another_log_or_of_a_lost_future_is_refused(
    lone: Api, db_url: str, s3_config: S3Config
) -> None:
    """Given a log set back by a restore and written on, then no position is silently taken for another event's."""
    behind = await connect(db_url)
    await behind.execute(
        "update eventstore.log set log_id = gen_random_uuid()"
    )  # the tests' databases are copies of one
    with running("api", db_url, s3_config) as service, consumer(service) as api:
        job = api.create()
        _, cursor = pages(api)
        assert "another log" in invalid(lone.http.get("/v1/events", params={"cursor": cursor}), "cursor")
        await behind.execute("alter table eventstore.events disable trigger all; delete from eventstore.events")
        _set_back(api.http.get("/v1/events", params={"cursor": cursor}))
        last = job[-1]
        while api.create()[-1] != last:
            pass
        _set_back(api.http.get("/v1/events", params={"cursor": cursor}))
        _set_back(api.http.get("/v1/events/stream", headers={"Last-Event-ID": cursor}), "Last-Event-ID")
    await behind.close()


def _set_back(answer: httpx.Response, field: str = "cursor") -> None:
    assert "set back" in invalid(answer, field)
    assert answer.json()["details"]["position"] == 1


def test_an_id_that_is_none_of_a_job_has_no_history_there(lone: Api) -> None:
    assert lone.http.get(f"/v1/jobs/{new_id()}/events").status_code == 404
