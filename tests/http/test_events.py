"""GET /v1/events and /v1/events/stream: the whole log."""

import json
import re
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pytest

from artifacts.object_store import S3Config
from eventstore.ids import new_id
from eventstore.log import Append, Batch
from tests.conftest import Backends, execute, fresh_database
from tests.http.conftest import Scribe, consumer, invalid, live, running, succeeded
from tests.kit import Api, Store, event, model_registered

EVENT = {"version", "event_id", "code", "ts", "level", "step", "data", "meta", "hash", "stream", "category"}


@pytest.fixture(scope="module")
def log(backends: Backends, s3_config: S3Config) -> Iterator[tuple[str, Api]]:
    """A database of one's own, and an API on it."""
    with (
        fresh_database(backends) as url,
        running("api", url, s3_config, DF_SSE_HEARTBEAT_S="0.3") as service,
        consumer(service) as api,
    ):
        yield url, api


@pytest.fixture
async def filled(log: tuple[str, Api]) -> Any:
    """The API, and a scribe of its log, which holds twelve jobs and a model."""
    url, api = log
    store = Store(url, listen=False)
    if not api.get("/v1/events")["events"]:
        for _ in range(12):
            await Scribe(store).write(succeeded(count=1))
        append = Append(stream=new_id(), expected=0, events=(event(model_registered()),), category="model")
        await store.log.commit(Batch(appends=[append]))
    yield api, Scribe(store)
    await store.close()


def walk(api: Api, cursor: str | None = None, **params: Any) -> tuple[list[Any], str]:
    """All pages from a cursor on, and the last one's cursor."""
    found: list[Any] = []
    while True:
        page = api.get("/v1/events", **params, **({} if cursor is None else {"cursor": cursor}))
        assert page.keys() == {"events", "next_cursor", "has_more"}
        found += page["events"]
        cursor = page["next_cursor"]
        assert cursor
        if not page["has_more"]:
            return found, cursor


async def recorded(scribe: Scribe) -> dict[str, list[tuple[int, str]]]:
    """What the log holds, by stream."""
    rows = await scribe.store.database.read(
        "select stream_id::text, version, code from eventstore.events order by stream_id, version"
    )
    return by_stream([{"stream": row[0], "version": row[1], "code": row[2]} for row in rows])


def by_stream(events: list[Any]) -> dict[str, list[tuple[int, str]]]:
    """Versions and codes of each stream, in the order in which they came."""
    found: dict[str, list[tuple[int, str]]] = {}
    for one in events:
        found.setdefault(one["stream"], []).append((one["version"], one["code"]))
    return found


@pytest.mark.parametrize("limit", [3, 7, 1000, None])
async def test_the_pages_are_the_log(filled: Any, limit: int | None) -> None:
    """Every event once, in order within its stream; 100 at once unless told otherwise."""
    api, scribe = filled
    params: dict[str, Any] = {} if limit is None else {"limit": limit}
    found, cursor = walk(api, **params)
    assert by_stream(found) == await recorded(scribe)
    assert api.get("/v1/events", cursor=cursor) == {"events": [], "next_cursor": cursor, "has_more": False}
    assert len(api.get("/v1/events", **params)["events"]) == min(len(found), limit or 100)


async def test_an_event_is_that_of_the_history_with_its_stream_and_category(filled: Any) -> None:
    api, _ = filled
    found, _ = walk(api)
    job_id = next(one["stream"] for one in found if one["category"] == "job")
    own = [one for one in found if one["stream"] == job_id]
    assert all(one.keys() == EVENT for one in found)
    for one, seen in zip(own, api.history(job_id), strict=True):
        assert one == seen | {"stream": job_id, "category": "job"}


@pytest.mark.parametrize(
    ("params", "codes"),
    [
        ({"codes": "job.finish"}, {"job.finish"}),
        ({"codes": "job.finish,step.start"}, {"job.finish", "step.start"}),
        ({"category": "model"}, {"model.registered"}),
        ({"category": "job", "codes": "model.registered"}, set()),
    ],
)
async def test_filters_leave_out_the_rest(filled: Any, params: dict[str, str], codes: set[str]) -> None:
    """Page by page as well."""
    api, _ = filled
    whole = [one for one in walk(api)[0] if one["code"] in codes]
    for limit in (2, 1000):
        assert by_stream(walk(api, limit=limit, **params)[0]) == by_stream(whole)


async def test_a_cursor_goes_on_with_what_came_since(filled: Any) -> None:
    api, scribe = filled
    _, cursor = walk(api)
    job_id = await scribe.write(succeeded(count=1))
    found, newer = walk(api, cursor)
    assert {one["stream"] for one in found} == {job_id}
    assert newer != cursor


async def test_a_cursor_that_is_none_or_another_logs_is_rejected(filled: Any, lone: Api) -> None:
    """Cut off, changed, of another list or of another database."""
    api, _ = filled
    _, cursor = walk(api)
    other = lone.get("/v1/events", limit=1)["next_cursor"]
    for text in ("", "x", cursor[:-3], cursor + "A", other):
        invalid(api.http.get("/v1/events", params={"cursor": text}), "cursor")
        if text:
            invalid(api.http.get("/v1/events/stream", params={"cursor": text}), "cursor")
            invalid(api.http.get("/v1/events/stream", headers={"Last-Event-ID": text}), "Last-Event-ID")
            by_query = api.http.get("/v1/events/stream", params={"last_event_id": text})
            assert by_query.status_code == 422


def message(frame: str) -> tuple[Any, str]:
    """A message's data and id; it has no other lines."""
    data, position = frame.split("\n")
    return json.loads(data.removeprefix("data: ")), position.removeprefix("id: ")


async def test_the_stream_is_the_log_from_its_start(filled: Any) -> None:
    """One message per event, without a name; `id:` is a cursor that resumes behind it, here and as a page."""
    api, _ = filled
    whole, _ = walk(api)
    async with live(api.base, "/v1/events/stream?from=start") as frames:
        assert frames.answer.headers["Content-Type"] == "text/event-stream; charset=utf-8"
        assert frames.answer.headers["Cache-Control"] == "no-store"
        assert re.fullmatch(r"retry: 2000\nevent: cursor\ndata: {}\nid: \S+", await frames.next())
        came: list[tuple[Any, str]] = []
        while len(came) < len(whole):
            frame = await frames.next()
            if frame.startswith("data: "):
                came.append(message(frame))
    assert by_stream([data for data, _ in came]) == by_stream(whole)
    assert all(data.keys() == EVENT for data, _ in came)
    middle = len(came) // 2
    rest = by_stream(walk(api, came[middle - 1][1])[0])
    assert rest == by_stream([data for data, _ in came[middle:]])
    async with live(api.base, f"/v1/events/stream?from=start&last_event_id={came[-2][1]}") as frames:
        assert message((await frames.until('data: {"'))[-1]) == came[-1]
    async with live(api.base, f"/v1/events/stream?from=start&cursor={came[-2][1]}") as frames:
        assert message((await frames.until('data: {"'))[-1]) == came[-1]


@pytest.mark.parametrize("query", ["", "?from=now"])
async def test_the_stream_begins_at_the_tail_unless_told_otherwise(filled: Any, query: str) -> None:
    api, scribe = filled
    async with live(api.base, f"/v1/events/stream{query}") as frames:
        await frames.until("id: ")
        job_id = await scribe.write(succeeded(count=1))
        for version in range(1, 9):
            data, _ = message((await frames.until('data: {"'))[-1])
            assert (data["stream"], data["version"]) == (job_id, version)


async def test_heartbeats_move_the_cursor_past_what_a_filter_leaves_out(filled: Any) -> None:
    """An `event: cursor`, from whose `id:` a subscriber resumes without reading all again."""
    api, scribe = filled
    async with live(api.base, "/v1/events/stream?codes=error&category=job") as frames:
        first = (await frames.until("id: "))[-1]
        await scribe.write(succeeded(count=1))
        _, head = walk(api)
        blocks = await frames.until(f"id: {head}")
    told = [block.removeprefix("retry: 2000\n") for block in [first, *blocks]]
    assert all(re.fullmatch(r"event: cursor\ndata: {}\nid: \S+", block) for block in told)


@pytest.fixture
def own(db_url: str, s3_config: S3Config) -> Iterator[Api]:
    """An API on a database whose log a test sets back."""
    with running("api", db_url, s3_config) as service, consumer(service) as api:
        yield api


async def test_a_cursor_of_a_lost_future_is_rejected(own: Api, db_url: str, store: Store) -> None:
    """Given a log that was set back and has grown again, then who saw what is lost is told so, and nobody else."""
    scribe = Scribe(store)
    await scribe.write(succeeded(count=1))
    _, kept = walk(own)
    lost_job = await scribe.write(succeeded(count=1))
    _, lost = walk(own)
    await execute(
        db_url,
        "alter table eventstore.envelopes disable trigger append_only_rows",
        f"delete from eventstore.events where stream_id = '{lost_job}'",
        "alter table eventstore.envelopes enable always trigger append_only_rows",
    )
    invalid(own.http.get("/v1/events", params={"cursor": lost}), "cursor")
    again = ""
    while not again or UUID(again).bytes[-1] & 7 != UUID(lost_job).bytes[-1] & 7:
        again = await scribe.write(succeeded(count=1))
    assert "no longer" in invalid(own.http.get("/v1/events", params={"cursor": lost}), "cursor")
    invalid(own.http.get("/v1/events/stream", headers={"Last-Event-ID": lost}), "Last-Event-ID")
    assert again in {one["stream"] for one in walk(own, kept)[0]}
