"""Events to and from their stored text. Pure."""

from collections.abc import Callable
from typing import Any, cast, get_args

import msgspec

from eventstore.events import AnchorSigned, Body, Fact, JobBody, KeyBody, Meta, ModelBody, OutboxBody, Private, Stored

_ALL = get_args(JobBody | ModelBody | KeyBody | OutboxBody | AnchorSigned)
_BODIES: dict[str, type[Body]] = {body.code: body for body in _ALL}
CODES = frozenset(_BODIES)
"""Every code that this release knows."""

_DECODERS: dict[str, msgspec.json.Decoder[Body]] = {
    code: cast("msgspec.json.Decoder[Body]", msgspec.json.Decoder(body)) for code, body in _BODIES.items()
}
_META = msgspec.json.Decoder(Meta)
_PRIVATE = msgspec.json.Decoder(Private)

Upcast = Callable[[dict[str, Any]], dict[str, Any]]

UPCASTS: dict[tuple[str, int], Upcast] = {
    ("step.retry", 1): lambda data: data,  # version 2 knows one more reason
    ("job.retry_requested", 1): lambda data: data,  # version 2 may name items
}
"""(code, schema version) → the step that lifts data of that version to the next one."""


def encode(value: msgspec.Struct) -> str:
    """The JSON text under which a body, meta or private part is stored and hashed."""
    return msgspec.json.encode(value).decode()


def current_version(code: str) -> int:
    """The schema version in which this release writes an event."""
    return _BODIES[code].schema_version


def is_known(code: str, schema_version: int) -> bool:
    """Can this release decode such an event?"""
    body = _BODIES.get(code)
    return body is not None and schema_version <= body.schema_version


def body(event: Stored) -> Body | None:
    """Decode an event's data, lifting older schema versions; None for a code or version this release doesn't know."""
    if not is_known(event.code, event.schema_version):
        return None
    kind = _BODIES[event.code]
    if event.schema_version == kind.schema_version:
        return _DECODERS[event.code].decode(event.data)
    data = msgspec.json.decode(event.data)
    for version in range(event.schema_version, kind.schema_version):
        data = UPCASTS[event.code, version](data)
    return msgspec.convert(data, kind)


def meta(event: Stored) -> Meta:
    """Decode an event's meta; members of later releases are ignored."""
    return _META.decode(event.meta)


def private(event: Stored) -> Private:
    """Decode an event's private part; empty where there is none, or none any more."""
    return Private() if event.private is None else _PRIVATE.decode(event.private)


def fact(event: Stored) -> Fact:
    """An event as folds see it."""
    return Fact(
        stream_id=event.stream_id,
        tenant=event.tenant,
        version=event.version,
        ts=event.ts,
        body=body(event),
        meta=meta(event),
        private=private(event),
    )
