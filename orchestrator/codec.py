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
    PersonalText,
)

T = TypeVar("T")

_ALL_EVENT_TYPES = get_args(JobEvent | ModelEvent | KeyEvent | OutboxEvent | AnchorSigned)
EVENT_TYPE_BY_CODE: dict[str, type[DomainEvent]] = {body.code: body for body in _ALL_EVENT_TYPES}
"""Every event that this release knows, by its code."""
EVENT_CODES = frozenset(EVENT_TYPE_BY_CODE)

_DECODERS: dict[str, msgspec.json.Decoder[DomainEvent]] = {
    code: cast("msgspec.json.Decoder[DomainEvent]", msgspec.json.Decoder(body))
    for code, body in EVENT_TYPE_BY_CODE.items()
}
_META_DECODER = msgspec.json.Decoder(Meta)
_PRIVATE_DECODER = msgspec.json.Decoder(PersonalText)

Upcast = Callable[[dict[str, Any]], dict[str, Any]]

UPCAST_BY_VERSION: dict[tuple[str, int], Upcast] = {
    ("step.retry", 1): lambda data: data,  # version 2 knows one more reason
    ("job.retry_requested", 1): lambda data: data,  # version 2 may name items
}
"""(code, schema version) → the step that lifts data of that version to the next one."""


COLUMN_VOCABULARY: Mapping[str, Sequence[str]] = {"code": sorted(EVENT_CODES), "category": get_args(Category)}
"""The values that this release knows of two columns: verification tries them to name a changed one."""


def encode(value: msgspec.Struct) -> str:
    """The JSON text under which a body, meta or private part is stored and hashed."""
    return msgspec.json.encode(value).decode()


def new_event(
    event_id: UUID, ts: datetime, body: DomainEvent, meta: Meta, private: PersonalText | None = None
) -> NewEvent:
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
    body = EVENT_TYPE_BY_CODE.get(code)
    return body is not None and schema_version <= body.schema_version


def decode_body(event: EventRow) -> DomainEvent | None:
    """Decode an event's data, lifting older schema versions; None for a code or version this release doesn't know.

    Raises `UndecodableEvent`, as `decode_meta`, `decode_private` and `decode_event` do.
    """
    if not is_known(event.code, event.schema_version):
        return None
    event_type = EVENT_TYPE_BY_CODE[event.code]
    if event.schema_version == event_type.schema_version:
        return _decode_text(_DECODERS[event.code], event, event.data)
    try:
        data = msgspec.json.decode(event.data)
        for version in range(event.schema_version, event_type.schema_version):
            data = UPCAST_BY_VERSION[event.code, version](data)
        return msgspec.convert(data, event_type)
    except (msgspec.MsgspecError, LookupError, TypeError, ValueError, RecursionError) as error:
        raise _undecodable_event(event, error) from error


def decode_body_or_none(event: EventRow) -> DomainEvent | None:
    """For whoever only shows events: None for one that can't be decoded, too."""
    try:
        return decode_body(event)
    except UndecodableEvent:
        return None


def decode_meta(event: EventRow) -> Meta:
    """Decode an event's meta; members of later releases are ignored."""
    return _decode_text(_META_DECODER, event, event.meta)


def decode_private(event: EventRow) -> PersonalText:
    """Decode an event's private part; empty where there is none, or none any more."""
    return PersonalText() if event.private is None else _decode_text(_PRIVATE_DECODER, event, event.private)


def _decode_text(decoder: msgspec.json.Decoder[T], event: EventRow, text: str) -> T:
    try:
        return decoder.decode(text)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise _undecodable_event(event, error) from error


def _undecodable_event(event: EventRow, error: Exception) -> UndecodableEvent:
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
        body=decode_body(event),
        meta=decode_meta(event),
        private=decode_private(event),
    )
