"""An event as a line of a log: for NDJSON and for the live streams. Pure."""

from typing import Any

import msgspec

from api.responses import stamp
from eventstore.events import RecordedEvent
from orchestrator import codec
from orchestrator.events.base import DomainEvent

_NOT_TO_US = (msgspec.DecodeError, RecursionError)
"""What is raised on JSON that PostgreSQL takes: half a surrogate pair, thousands of brackets."""


def head(event: RecordedEvent, body: DomainEvent | None) -> dict[str, Any]:
    """What every line begins with. An event that this release does not know speaks by its code."""
    return {
        "ts": stamp(event.ts),
        "level": "info" if body is None else body.level,
        "code": event.code,
        "message": event.code if body is None else body.message(),
    }


def data(event: RecordedEvent) -> dict[str, Any]:
    """The event's own members; they use none of the names of the head for anything else."""
    try:
        found = msgspec.json.decode(event.data)
    except _NOT_TO_US:
        return {}
    return found if isinstance(found, dict) else {"data": found}


def payload(event: RecordedEvent) -> msgspec.Raw:
    """The event's data as it stands, on one line: the log keeps line breaks as they came."""
    try:
        return msgspec.Raw(msgspec.json.format(event.data, indent=-1).encode())
    except _NOT_TO_US:
        return msgspec.Raw(b"{}")


def line(event: RecordedEvent) -> bytes:
    """A line of GET /v1/jobs/{id}/logs."""
    body = codec.body_if_readable(event)
    return msgspec.json.encode(head(event, body) | {"job_id": event.stream_id} | data(event)) + b"\n"
