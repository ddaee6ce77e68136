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
from api.inputs import bounded_integer_query, choice_query, comma_separated_query, last_event_id
from api.openapi.log import LIST_EVENTS, STREAM_EVENTS
from api.responses import json_response
from api.routing import ApiRoute, get
from api.services import Services
from eventstore.errors import EventStoreError
from eventstore.events import RecordedEvent
from eventstore.log import OPERATOR_TENANT, expect_gapless
from orchestrator import codec
from orchestrator.events import Category

_MAX_PAGE_SIZE = 1000
_EVENTS_PER_READ = 200
_MAX_READS_PER_REQUEST = 20
"""How many times one request reads the log until it has found enough events that its filter passes."""


class _EventFilter(msgspec.Struct, frozen=True):
    """The events that a subscriber may see and asked for. includes_operator_events: also those of the service itself.

    codes, category: None for all.
    """

    tenant: str
    includes_operator_events: bool
    codes: frozenset[str] | None
    category: str | None

    @property
    def excludes_events(self) -> bool:
        return self.codes is not None or self.category is not None or not self.includes_operator_events

    def accepts(self, event: RecordedEvent) -> bool:
        # Models belong to no tenant.
        visible = (
            event.tenant == self.tenant
            or event.category == "model"
            or (self.includes_operator_events and event.tenant == OPERATOR_TENANT)
        )
        return visible and self.category in {None, event.category} and (self.codes is None or event.code in self.codes)


async def list_events(request: Request, services: Services) -> Response:
    """GET /v1/events: the log page by page, from its beginning or after a cursor."""
    limit = bounded_integer_query(request, "limit", default=100, minimum=1, maximum=_MAX_PAGE_SIZE)
    wanted = _parse_event_filter(request, services)
    cursor = await _parse_cursor(services, request.query_params.get("cursor"), "cursor") or await _cursor_at(
        services, "start"
    )
    found: list[RecordedEvent] = []
    more = True
    size = _EVENTS_PER_READ if wanted.excludes_events else min(limit, _EVENTS_PER_READ)
    for _ in range(_MAX_READS_PER_REQUEST):
        batches = await _read_events_by_partition(services, cursor, size)
        taken, left = _take_accepted_events(_merge_by_recorded_time(batches), cursor, wanted, limit - len(found))
        found += taken
        more = left or any(len(events) == size for events in batches.values())
        if not more or len(found) == limit:
            break
    answer = schemas.LogPage(
        events=list(map(responses.log_event_answer, found)), next_cursor=cursor.encode(), has_more=more
    )
    return json_response(answer)


async def _read_events_by_partition(
    services: Services, cursor: LogCursor, limit: int
) -> Mapping[int, Sequence[RecordedEvent]]:
    """Events of each partition, from the database: the tailer may be behind what another response has reported."""
    batches = await services.log.read_after(cursor.positions, limit=limit)
    for partition, events in batches.items():
        expect_gapless(partition, cursor.marks[partition].position, events)
    return batches


def _take_accepted_events(
    events: Iterator[RecordedEvent], cursor: LogCursor, event_filter: _EventFilter, limit: int
) -> tuple[list[RecordedEvent], bool]:
    """The first events that pass the filter, and whether events are left; moves the cursor past the others."""
    taken: list[RecordedEvent] = []
    for event in events:
        if len(taken) == limit:
            return taken, True
        _advance_cursor_past(cursor, event)
        if event_filter.accepts(event):
            taken.append(event)
    return taken, False


async def open_log_stream(request: Request, services: Services) -> Response:
    """GET /v1/events/stream: the log as it grows."""
    wanted = _parse_event_filter(request, services)
    start_at = choice_query(request, "from", ("start", "now"))
    cursor = (
        await _parse_cursor(services, last_event_id(request), "Last-Event-ID")
        or await _parse_cursor(services, request.query_params.get("cursor"), "cursor")
        or await _cursor_at(services, start_at)
    )
    return EventStreamResponse(services, follow_log(services, cursor, wanted))


async def follow_log(services: Services, cursor: LogCursor, event_filter: _EventFilter) -> AsyncGenerator[bytes, None]:
    """The frames of the whole log after a cursor, without end."""
    yield frames.retry_line(frames.RECONNECT_DELAY_MS) + frames.cursor_frame(cursor.encode())
    async with services.tailer.follow(None) as wake_signal:
        with HeartbeatTimer(services.config.sse_heartbeat_s, wake_signal) as heartbeat:
            while not services.stopping.is_set():
                try:
                    batches = await services.tailer.log_events_after(cursor.positions, limit=_EVENTS_PER_READ)
                except EventStoreError:
                    return  # the client reconnects and resumes
                chunks = join_frames(_event_frames(batches, cursor, event_filter))
                while chunk := next(chunks, b""):
                    yield chunk
                if heartbeat.take_if_due():
                    yield frames.cursor_frame(cursor.encode())
                if not batches:
                    await wake_signal.wait()


def _event_frames(
    batches: Mapping[int, Sequence[RecordedEvent]], cursor: LogCursor, event_filter: _EventFilter
) -> Iterator[bytes]:
    """The frames of the events that pass the filter; moves the cursor past all."""
    for event in _merge_by_recorded_time(batches):
        _advance_cursor_past(cursor, event)
        if event_filter.accepts(event):
            yield frames.log_event_frame(event, cursor.encode())


def _merge_by_recorded_time(batches: Mapping[int, Sequence[RecordedEvent]]) -> Iterator[RecordedEvent]:
    """Events of several partitions by the database's clock, which never runs backwards within a partition."""
    events = [event for batch in batches.values() for event in batch]
    return iter(sorted(events, key=lambda event: (event.recorded_at, event.partition, event.position)))


def _advance_cursor_past(cursor: LogCursor, event: RecordedEvent) -> None:
    cursor.marks[event.partition] = LogMark.of_event(event.position, event.chain)


def _parse_event_filter(request: Request, services: Services) -> _EventFilter:
    operator = services.keys is None  # without keys, every client may do everything
    category = choice_query(request, "category", get_args(Category))
    return _EventFilter(caller_of(request).tenant, operator, _parse_event_codes(request), category)


def _parse_event_codes(request: Request) -> frozenset[str] | None:
    if "codes" not in request.query_params:
        return None
    codes = comma_separated_query(request, "codes")
    unknown = sorted(codes - codec.EVENT_CODES)
    if unknown:
        raise invalid_field_error(
            "codes", f"there is no event {unknown[0][:100]!r}; known are {', '.join(sorted(codec.EVENT_CODES))}"
        )
    return codes


async def _cursor_at(services: Services, start_or_now: str | None) -> LogCursor:
    """The cursor at the log's start, or at its end."""
    head = await services.log.read_head()
    if start_or_now == "start":
        return LogCursor(head.log_id, dict.fromkeys(head.ends, LogMark(0, b"")))
    return LogCursor(
        head.log_id, {partition: LogMark.of_event(end.position, end.chain) for partition, end in head.ends.items()}
    )


async def _parse_cursor(services: Services, text: str | None, source_field: str) -> LogCursor | None:
    """A client's cursor. Raises unless it is of this log, and the events that it has seen are still there."""
    if text is None:
        return None
    try:
        cursor = LogCursor.decode(text)
    except ValueError:
        raise invalid_field_error(
            source_field, "is no cursor of the log; take it as it stands from next_cursor or an event's id"
        ) from None
    head = await services.log.read_head()
    if cursor.log_id != head.log_id or cursor.marks.keys() != head.ends.keys():
        raise invalid_field_error(source_field, "is a cursor of another log; begin anew, without it")
    seen = {partition: mark.position for partition, mark in cursor.marks.items() if mark.position}
    chains = await services.log.chain_hashes(seen)
    lost = [partition for partition, mark in cursor.marks.items() if not mark.matches_chain(chains.get(partition))]
    if lost:
        raise _log_was_set_back_error(source_field, lost[0], cursor.marks[lost[0]].position)
    return cursor


def _log_was_set_back_error(source_field: str, partition: int, position: int) -> ApiError:
    return invalid_field_error(
        source_field,
        "has seen events that this log no longer holds, since it was set back (by a restore, say); begin anew",
        partition=partition,
        position=position,
    )


ROUTES = [
    get("/v1/events", list_events, AUDIT_SCOPES, LIST_EVENTS),
    ApiRoute(
        "GET", "/v1/events/stream", StreamEndpoint("log", open_log_stream), AUDIT_SCOPES, STREAM_EVENTS, head=False
    ),
]
