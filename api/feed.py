"""The whole log, for those who tail it: page by page, and live. Order holds within a stream.

cursor ─▶ is it of this log, and not of a lost future? ─▶ the events after it, each with the cursor behind it
"""

from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from typing import get_args

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from api import frames, responses, schemas
from api.access import caller
from api.cursors import LogCursor, Mark
from api.errors import ApiError, invalid
from api.inputs import one_of, whole_number
from api.responses import json_response
from api.services import Services
from api.sse import EventStream, HeartbeatTimer, pieces
from eventstore.errors import EventStoreError
from eventstore.events import RecordedEvent
from eventstore.log import OPERATOR_TENANT, expect_gapless
from orchestrator import codec
from orchestrator.events.base import Category

_MOST_EVENTS = 1000
_PAGE = 200
_MOST_PAGES = 20
"""How many pages one request looks through for events that its filter lets pass."""


class _Filter(msgspec.Struct, frozen=True):
    """Which events a subscriber may see, and asked for; None for all. operator: those of the service itself, too."""

    tenant: str
    operator: bool
    codes: frozenset[str] | None
    category: str | None

    @property
    def leaves_out(self) -> bool:
        return self.codes is not None or self.category is not None or not self.operator

    def passes(self, event: RecordedEvent) -> bool:
        # Models are everybody's; what else is another tenant's is passed by in silence.
        visible = (
            event.tenant == self.tenant
            or event.category == "model"
            or (self.operator and event.tenant == OPERATOR_TENANT)
        )
        return visible and self.category in {None, event.category} and (self.codes is None or event.code in self.codes)


async def page(request: Request) -> Response:
    """GET /v1/events: the log page by page, from its beginning or a cursor on."""
    services: Services = request.app.state.services
    limit = whole_number(request, "limit", default=100, least=1, most=_MOST_EVENTS)
    wanted = _filter(request)
    cursor = await _given(services, request.query_params.get("cursor"), "cursor") or await _start(services)
    found: list[schemas.LogEvent] = []
    more = True
    most = _PAGE if wanted.leaves_out else min(limit, _PAGE)
    for _ in range(_MOST_PAGES):
        # From the database: the tailer may not have seen what another answer has reported.
        batches = await services.log.after(cursor.positions, limit=most)
        for partition, events in batches.items():
            expect_gapless(partition, cursor.marks[partition].position, events)
        left = sum(map(len, batches.values()))
        for event in _in_order(batches):
            if len(found) == limit:
                break
            _pass(cursor, event)
            left -= 1
            if wanted.passes(event):
                found.append(responses.log_event(event))
        more = left > 0 or any(len(events) == most for events in batches.values())
        if not more or len(found) == limit:
            break
    return json_response(schemas.LogPage(events=found, next_cursor=cursor.encode(), has_more=more))


async def stream(request: Request) -> Response:
    """GET /v1/events/stream: the log as it grows."""
    services: Services = request.app.state.services
    wanted = _filter(request)
    begin = one_of(request, "from", ("start", "now"))
    header = request.headers.get("last-event-id") or request.query_params.get("last_event_id")
    cursor = (
        await _given(services, header or None, "Last-Event-ID")
        or await _given(services, request.query_params.get("cursor"), "cursor")
        or (await _start(services) if begin == "start" else await _end(services))
    )
    content = follow(services, cursor, wanted)
    return EventStream(services, content)


async def follow(services: Services, cursor: LogCursor, wanted: _Filter) -> AsyncGenerator[bytes, None]:
    """The frames of the whole log after a cursor, without end."""
    yield frames.retry(frames.RETRY_MS) + frames.cursor(cursor.encode())
    heartbeat = HeartbeatTimer(services.config.sse_heartbeat_s)
    async with services.tailer.follow(None) as wake_signal:
        while not services.stopping.is_set():
            try:
                batches = await services.tailer.everything(cursor.positions, limit=_PAGE)
            except EventStoreError:
                return  # the client comes back, and resumes
            for piece in pieces(_told(batches, cursor, wanted)):
                yield piece
            if heartbeat.beat():
                yield frames.cursor(cursor.encode())
            if not batches:
                await wake_signal.wait(heartbeat.left)


def _told(batches: Mapping[int, Sequence[RecordedEvent]], cursor: LogCursor, wanted: _Filter) -> Iterator[bytes]:
    """The frames of those events that were asked for; the cursor passes them all."""
    for event in _in_order(batches):
        _pass(cursor, event)
        if wanted.passes(event):
            yield frames.of_log_event(event, cursor.encode())


def _in_order(batches: Mapping[int, Sequence[RecordedEvent]]) -> Iterator[RecordedEvent]:
    """Events of several partitions by the database's clock, which never runs backwards within one."""
    events = [event for batch in batches.values() for event in batch]
    return iter(sorted(events, key=lambda event: (event.recorded_at, event.partition, event.position)))


def _pass(cursor: LogCursor, event: RecordedEvent) -> None:
    cursor.marks[event.partition] = Mark.at(event.position, event.chain)


def _filter(request: Request) -> _Filter:
    tenant = caller(request).tenant
    services: Services = request.app.state.services
    operator = services.keys is None  # whoever reaches a service without keys may do all that it can
    category = one_of(request, "category", get_args(Category))
    given = request.query_params.getlist("codes")
    if not given:
        return _Filter(tenant, operator, None, category)
    codes = frozenset(name.strip() for value in given for name in value.split(","))
    unknown = sorted(codes - codec.CODES)
    if unknown:
        raise invalid("codes", f"there is no event {unknown[0][:100]!r}; known are {', '.join(sorted(codec.CODES))}")
    return _Filter(tenant, operator, codes, category)


async def _start(services: Services) -> LogCursor:
    head = await services.log.head()
    return LogCursor(head.log_id, dict.fromkeys(head.ends, Mark(0, b"")))


async def _end(services: Services) -> LogCursor:
    head = await services.log.head()
    return LogCursor(head.log_id, {partition: Mark.at(end.position, end.chain) for partition, end in head.ends.items()})


async def _given(services: Services, text: str | None, field: str) -> LogCursor | None:
    """The cursor that a client gave, if it is one of this log's, and what it has seen still stands there."""
    if text is None:
        return None
    try:
        cursor = LogCursor.decode(text)
    except ValueError:
        raise invalid(
            field, "is no cursor of the log; take it as it stands from next_cursor or an event's id"
        ) from None
    head = await services.log.head()
    if cursor.log_id != head.log_id or cursor.marks.keys() != head.ends.keys():
        raise invalid(field, "is a cursor of another log; begin anew, without it")
    seen = {partition: mark.position for partition, mark in cursor.marks.items() if mark.position}
    chains = await services.log.chains(seen)
    lost = [partition for partition, mark in cursor.marks.items() if not mark.matches(chains.get(partition))]
    if lost:
        raise _set_back(field, lost[0], cursor.marks[lost[0]].position)
    return cursor


def _set_back(field: str, partition: int, position: int) -> ApiError:
    return invalid(
        field,
        "has seen events that this log no longer holds, since it was set back (by a restore, say); begin anew",
        partition=partition,
        position=position,
    )
