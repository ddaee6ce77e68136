"""Events to and from their stored text. Pure."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from functools import reduce
from typing import Any, TypeVar, cast, get_args
from uuid import UUID

import msgspec

from eventstore.errors import UndecodableEvent
from eventstore.events import EventRow, NewEvent
from orchestrator.events import (
    AnchorSigned,
    Category,
    DecodedEvent,
    DomainEvent,
    JobEvent,
    KeyEvent,
    Meta,
    ModelEvent,
    OutboxEvent,
    Private,
)

T = TypeVar("T")

_ALL = get_args(JobEvent | ModelEvent | KeyEvent | OutboxEvent | AnchorSigned)
BODIES: dict[str, type[DomainEvent]] = {body.code: body for body in _ALL}
"""Every event that this release knows, by its code."""
CODES = frozenset(BODIES)

_DECODERS: dict[str, msgspec.json.Decoder[DomainEvent]] = {
    code: cast("msgspec.json.Decoder[DomainEvent]", msgspec.json.Decoder(body)) for code, body in BODIES.items()
}
_META = msgspec.json.Decoder(Meta)
_PRIVATE = msgspec.json.Decoder(Private)

Upcast = Callable[[dict[str, Any]], dict[str, Any]]

UPCASTS: dict[tuple[str, int], Upcast] = {
    ("step.retry", 1): lambda data: data,  # version 2 knows one more reason
    ("job.retry_requested", 1): lambda data: data,  # version 2 may name items
}
"""(code, schema version) → the step that lifts data of that version to the next one."""


VOCABULARY: Mapping[str, Sequence[str]] = {"code": sorted(CODES), "category": get_args(Category)}
"""The values that this release knows of two columns: verification tries them to name a changed one."""


def encode(value: msgspec.Struct) -> str:
    """The JSON text under which a body, meta or private part is stored and hashed."""
    return msgspec.json.encode(value).decode()


def new_event(event_id: UUID, ts: datetime, body: DomainEvent, meta: Meta, private: Private | None = None) -> NewEvent:
    """An event to append. ts: the appender's clock, UTC."""
    return NewEvent(
        event_id=event_id,
        code=body.code,
        schema_version=body.written_version,
        ts=ts,
        data=encode(body),
        meta=encode(meta),
        private=None if private is None else encode(private),
    )


def is_known(code: str, schema_version: int) -> bool:
    """Can this release decode such an event?"""
    body = BODIES.get(code)
    return body is not None and schema_version <= body.schema_version


def body(event: EventRow) -> DomainEvent | None:
    """Decode an event's data, lifting older schema versions; None for a code or version this release doesn't know.

    Raises `UndecodableEvent`, as `meta`, `private` and `decode_event` do.
    """
    if not is_known(event.code, event.schema_version):
        return None
    kind = BODIES[event.code]
    if event.schema_version == kind.schema_version:
        return _decode(_DECODERS[event.code], event, event.data)
    try:
        data = msgspec.json.decode(event.data)
        for version in range(event.schema_version, kind.schema_version):
            data = UPCASTS[event.code, version](data)
        return msgspec.convert(data, kind)
    except (msgspec.MsgspecError, LookupError, TypeError, ValueError, RecursionError) as error:
        raise _undecodable(event, error) from error


def body_if_readable(event: EventRow) -> DomainEvent | None:
    """For whoever only shows events: None for one that can't be decoded, too."""
    try:
        return body(event)
    except UndecodableEvent:
        return None


def meta(event: EventRow) -> Meta:
    """Decode an event's meta; members of later releases are ignored."""
    return _decode(_META, event, event.meta)


def private(event: EventRow) -> Private:
    """Decode an event's private part; empty where there is none, or none any more."""
    return Private() if event.private is None else _decode(_PRIVATE, event, event.private)


def _decode(decoder: msgspec.json.Decoder[T], event: EventRow, text: str) -> T:
    try:
        return decoder.decode(text)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise _undecodable(event, error) from error


def _undecodable(event: EventRow, error: Exception) -> UndecodableEvent:
    return UndecodableEvent(event.code, event.schema_version, event.version, str(error) or type(error).__name__)


def fold(evolve: Callable[[T | None, DecodedEvent], T | None], events: Iterable[DecodedEvent]) -> T | None:
    """The state after all events; None before the first."""
    return reduce(evolve, events, None)


def decode_event(event: EventRow) -> DecodedEvent:
    """An event as folds see it."""
    return DecodedEvent(
        stream_id=event.stream_id,
        tenant=event.tenant,
        version=event.version,
        ts=event.ts,
        body=body(event),
        meta=meta(event),
        private=private(event),
    )
