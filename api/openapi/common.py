"""What operations of several nouns share: parameters, headers, errors, and the live streams. Pure."""

from collections.abc import Mapping
from typing import get_args

from api.examples import Example
from api.openapi.vocabulary import JSON, SSE, STRING, Header, Reply, Schema, enum, header, query
from orchestrator import codec
from orchestrator.events import Category

UUID: Schema = {"type": "string", "format": "uuid"}
TIME: Schema = {"type": "string", "format": "date-time", "examples": ["2026-01-02T12:00:00Z"]}

CODES = query(
    "codes",
    "Only events of these codes.",
    {"type": "array", "items": enum(*sorted(codec.CODES)), "minItems": 1},
)
CATEGORY = query("category", "Only events of this category.", enum(*get_args(Category)))
LAST_EVENT_ID = (
    header("Last-Event-ID", "The last `id:` that the client received; the stream continues after it."),
    query("last_event_id", "The same, for clients that can't set headers.", STRING),
)
REQUEST_IDS = (
    header("X-Client-Request-Id", "An id for this request, 1 to 128 printable ASCII characters; wins over the next."),
    header("X-Request-Id", "The same. Without either, the service makes one."),
)

REQUEST_ID = {"X-Request-Id": Header("The request's id.", {"type": "string", "minLength": 1, "maxLength": 128})}
RETRY_AFTER = {"Retry-After": Header("Seconds to wait before the next try.", {"type": "string", "pattern": "^[0-9]+$"})}
CHALLENGE = {"WWW-Authenticate": Header("`Bearer`, with `error` where a key or a token was given (RFC 6750).")}
NO_STORE = {"Cache-Control": Header("`no-store`.", {"const": "no-store"})}

NO_KEY = "No API key, or one that is unknown or was revoked."
MISDIRECTED = "The service does not answer for this `Host` (`DF_ALLOWED_HOSTS`)."
LIMITED = "More requests a second, or more open jobs, than this tenant may have; see `Retry-After`."
UNAVAILABLE = {"infra_unavailable": "The database can't be reached; see `Retry-After`."}
INVALID_QUERY = {"invalid_input": "A parameter is malformed or out of bounds; `details.field` names it."}
STREAM_ERRORS = (
    " Where other routes answer 429, 503 or 500, this one answers 200 with a `retry:` of its own and closes, since any"
    " other status makes an EventSource stop for good."
)

# A string for clients that read the body as a whole, an object for each message for clients that know the format.
_MESSAGES: Schema = {
    "type": ["string", "object"],
    "properties": {
        "event": STRING,
        "data": STRING | {"contentMediaType": JSON},
        "id": STRING,
    },
}


def streamed(examples: Mapping[str, Example]) -> Reply:
    """The response of a live stream."""
    return Reply(
        200,
        "The events.",
        _MESSAGES,
        media=SSE,
        headers=NO_STORE | {"X-Accel-Buffering": Header("`no`.", {"const": "no"})},
        examples=examples,
    )
