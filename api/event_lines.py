"""An event as a line of a log, for NDJSON and for live streams. Pure."""

from typing import Any

import msgspec

from api.responses import format_timestamp
from eventstore.events import RecordedEvent
from orchestrator import codec
from orchestrator.events import DomainEvent

# PostgreSQL stores JSON that msgspec rejects: half a surrogate pair, thousands of brackets.
_JSON_DECODE_ERRORS = (msgspec.DecodeError, RecursionError)


def common_line_fields(event: RecordedEvent, body: DomainEvent | None) -> dict[str, Any]:
    """The first members of every line. body: None for an event that this release does not know."""
    return {
        "ts": format_timestamp(event.ts),
        "level": "info" if body is None else body.level,
        "code": event.code,
        "message": event.code if body is None else body.message(),
    }


def event_data_fields(event: RecordedEvent) -> dict[str, Any]:
    """The members of the event's data. None of them has a name of `common_line_fields` with another meaning."""
    try:
        found = msgspec.json.decode(event.data)
    except _JSON_DECODE_ERRORS:
        return {}
    return found if isinstance(found, dict) else {"data": found}


def single_line_event_data(event: RecordedEvent) -> msgspec.Raw:
    """The event's data on one line, otherwise unchanged. The log keeps line breaks, which would end a frame."""
    try:
        return msgspec.Raw(msgspec.json.format(event.data, indent=-1).encode())
    except _JSON_DECODE_ERRORS:
        return msgspec.Raw(b"{}")


def ndjson_line(event: RecordedEvent) -> bytes:
    """A line of GET /v1/jobs/{id}/logs."""
    body = codec.decode_body_or_none(event)
    return (
        msgspec.json.encode(common_line_fields(event, body) | {"job_id": event.stream_id} | event_data_fields(event))
        + b"\n"
    )
