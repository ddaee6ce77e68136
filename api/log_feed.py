"""Routes of the whole log: page by page, and live. Order holds within a stream.

cursor ─▶ is it of this log, and are its events still there? ─▶ the events after it, each with the cursor after it
"""

from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from typing import get_args

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from api import frames, responses, schemas
from api.access import AUDIT_SCOPES, caller_of
from api.cursors import LogCursor, LogMark
from api.errors import ApiError, invalid_field_error
from api.event_stream import EventStreamResponse, HeartbeatTimer, StreamEndpoint, join_frames
from api.inputs import comma_separated, last_event_id, one_of, whole_number
from api.openapi.log import LIST_EVENTS, STREAM_EVENTS
from api.responses import json_response
from api.routing import ApiRoute, get
from api.services import Services
from eventstore.errors import EventStoreError
from eventstore.events import RecordedEvent
from eventstore.log import OPERATOR_TENANT, expect_gapless
from orchestrator import codec
from orchestrator.events import Category

_MAX_EVENTS = 1000
_PAGE = 200
_MAX_READS = 20
"""How many times one request reads the log until it has found enough events that its filter passes."""


class _Filter(msgspec.Struct, frozen=True):
    """The events that a subscriber may see and asked for. operator: also those of the service itself.

    codes, category: None for all.
    """

    tenant: str
    operator: bool
    codes: frozenset[str] | None
    category: str | None

    @property
    def is_partial(self) -> bool:
        return self.codes is not None or self.category is not None or not self.operator

    def passes(self, event: RecordedEvent) -> bool:
        # Models belong to no tenant.
        visible = (
            event.tenant == self.tenant
            or event.category == "model"
            or (self.operator and event.tenant == OPERATOR_TENANT)
        )
        return visible and self.category in {None, event.category} and (self.codes is None or event.code in self.codes)


async def page(request: Request, services: Services) -> Response:
    """GET /v1/events: the log page by page, from its beginning or after a cursor."""
    limit = whole_number(request, "limit", default=100, least=1, most=_MAX_EVENTS)
    wanted = _filter(request, services)
    cursor = await _cursor(services, request.query_params.get("cursor"), "cursor") or await _at(services, "start")
    found: list[RecordedEvent] = []
    more = True
    size = _PAGE if wanted.is_partial else min(limit, _PAGE)
    for _ in range(_MAX_READS):
        batches = await _read(services, cursor, size)
        taken, left = _select(_in_order(batches), cursor, wanted, limit - len(found))
        found += taken
        more = left or any(len(events) == size for events in batches.values())
        if not more or len(found) == limit:
            break
    answer = schemas.LogPage(events=list(map(responses.log_event, found)), next_cursor=cursor.encode(), has_more=more)
    return json_response(answer)


async def _read(services: Services, cursor: LogCursor, size: int) -> Mapping[int, Sequence[RecordedEvent]]:
    """Events of each partition, from the database: the tailer may be behind what another response has reported."""
    batches = await services.log.after(cursor.positions, limit=size)
    for partition, events in batches.items():
        expect_gapless(partition, cursor.marks[partition].position, events)
    return batches


def _select(
    events: Iterator[RecordedEvent], cursor: LogCursor, wanted: _Filter, most: int
) -> tuple[list[RecordedEvent], bool]:
    """The first events that pass the filter, and whether events are left; moves the cursor past the others."""
    taken: list[RecordedEvent] = []
    for event in events:
        if len(taken) == most:
            return taken, True
        _advance(cursor, event)
        if wanted.passes(event):
            taken.append(event)
    return taken, False


async def open_stream(request: Request, services: Services) -> Response:
    """GET /v1/events/stream: the log as it grows."""
    wanted = _filter(request, services)
    start_at = one_of(request, "from", ("start", "now"))
    cursor = (
        await _cursor(services, last_event_id(request), "Last-Event-ID")
        or await _cursor(services, request.query_params.get("cursor"), "cursor")
        or await _at(services, start_at)
    )
    return EventStreamResponse(services, follow(services, cursor, wanted))


async def follow(services: Services, cursor: LogCursor, wanted: _Filter) -> AsyncGenerator[bytes, None]:
    """The frames of the whole log after a cursor, without end."""
    yield frames.retry_line(frames.RECONNECT_DELAY_MS) + frames.cursor_frame(cursor.encode())
    heartbeat = HeartbeatTimer(services.config.sse_heartbeat_s)
    async with services.tailer.follow(None) as wake_signal:
        while not services.stopping.is_set():
            try:
                batches = await services.tailer.everything(cursor.positions, limit=_PAGE)
            except EventStoreError:
                return  # the client reconnects and resumes
            for chunk in join_frames(_frames(batches, cursor, wanted)):
                yield chunk
            if heartbeat.take_if_due():
                yield frames.cursor_frame(cursor.encode())
            if not batches:
                await wake_signal.wait(heartbeat.seconds_left)


def _frames(batches: Mapping[int, Sequence[RecordedEvent]], cursor: LogCursor, wanted: _Filter) -> Iterator[bytes]:
    """The frames of the events that pass the filter; moves the cursor past all."""
    for event in _in_order(batches):
        _advance(cursor, event)
        if wanted.passes(event):
            yield frames.log_event_frame(event, cursor.encode())


def _in_order(batches: Mapping[int, Sequence[RecordedEvent]]) -> Iterator[RecordedEvent]:
    """Events of several partitions by the database's clock, which never runs backwards within a partition."""
    events = [event for batch in batches.values() for event in batch]
    return iter(sorted(events, key=lambda event: (event.recorded_at, event.partition, event.position)))


def _advance(cursor: LogCursor, event: RecordedEvent) -> None:
    cursor.marks[event.partition] = LogMark.of_event(event.position, event.chain)


def _filter(request: Request, services: Services) -> _Filter:
    operator = services.keys is None  # without keys, every client may do everything
    category = one_of(request, "category", get_args(Category))
    return _Filter(caller_of(request).tenant, operator, _codes(request), category)


def _codes(request: Request) -> frozenset[str] | None:
    if "codes" not in request.query_params:
        return None
    codes = comma_separated(request, "codes")
    unknown = sorted(codes - codec.CODES)
    if unknown:
        raise invalid_field_error(
            "codes", f"there is no event {unknown[0][:100]!r}; known are {', '.join(sorted(codec.CODES))}"
        )
    return codes


async def _at(services: Services, start_at: str | None) -> LogCursor:
    """The cursor at the log's start, or at its end."""
    head = await services.log.head()
    if start_at == "start":
        return LogCursor(head.log_id, dict.fromkeys(head.ends, LogMark(0, b"")))
    return LogCursor(
        head.log_id, {partition: LogMark.of_event(end.position, end.chain) for partition, end in head.ends.items()}
    )


async def _cursor(services: Services, text: str | None, field: str) -> LogCursor | None:
    """A client's cursor. Raises unless it is of this log, and the events that it has seen are still there."""
    if text is None:
        return None
    try:
        cursor = LogCursor.decode(text)
    except ValueError:
        raise invalid_field_error(
            field, "is no cursor of the log; take it as it stands from next_cursor or an event's id"
        ) from None
    head = await services.log.head()
    if cursor.log_id != head.log_id or cursor.marks.keys() != head.ends.keys():
        raise invalid_field_error(field, "is a cursor of another log; begin anew, without it")
    seen = {partition: mark.position for partition, mark in cursor.marks.items() if mark.position}
    chains = await services.log.chains(seen)
    lost = [partition for partition, mark in cursor.marks.items() if not mark.matches_chain(chains.get(partition))]
    if lost:
        raise _log_was_set_back(field, lost[0], cursor.marks[lost[0]].position)
    return cursor


def _log_was_set_back(field: str, partition: int, position: int) -> ApiError:
    return invalid_field_error(
        field,
        "has seen events that this log no longer holds, since it was set back (by a restore, say); begin anew",
        partition=partition,
        position=position,
    )


ROUTES = [
    get("/v1/events", page, AUDIT_SCOPES, LIST_EVENTS),
    ApiRoute("GET", "/v1/events/stream", StreamEndpoint("log", open_stream), AUDIT_SCOPES, STREAM_EVENTS, head=False),
]
