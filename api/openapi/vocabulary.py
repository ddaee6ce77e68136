"""The types of which operations are described in OpenAPI, and what several nouns share. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import msgspec

from api.examples import Example
from orchestrator import codec
from orchestrator.events import Category

Schema = dict[str, Any]

JSON, NDJSON, SSE, TEXT, HTML = (
    "application/json",
    "application/x-ndjson",
    "text/event-stream",
    "text/plain",
    "text/html",
)


STRING: Schema = {"type": "string"}


class Parameter(msgspec.Struct, frozen=True):
    """A parameter of the path, the query or the headers."""

    name: str
    location: Literal["path", "query", "header"]
    description: str
    schema: Schema


class Header(msgspec.Struct, frozen=True):
    """A response header."""

    description: str
    schema: Schema = msgspec.field(default_factory=lambda: STRING)


class Reply(msgspec.Struct, frozen=True):
    """A response that is not an error.

    schema: None if there is no body. links: operations that take values of this response, with their parameters.
    """

    status: int
    description: str
    schema: Schema | None = None
    media: str = JSON
    headers: Mapping[str, Header] = {}
    examples: Mapping[str, Example] = {}
    links: Mapping[str, Mapping[str, str]] = {}


class RequestBody(msgspec.Struct, frozen=True):
    """The body of a request."""

    schema: Schema
    required: bool = True
    examples: Mapping[str, Example] = {}


class Operation(msgspec.Struct, frozen=True):
    """The description of a route. Its method, path and scopes are the route's own.

    errors: by code of `api.errors.STATUS_BY_ERROR_CODE`, the reason; `document` adds those that all operations share.
    """

    name: str
    tag: str
    summary: str
    replies: Sequence[Reply]
    description: str = ""
    parameters: Sequence[Parameter] = ()
    body: RequestBody | None = None
    errors: Mapping[str, str] = {}


def ref(name: str) -> Schema:
    """A schema of the components."""
    return {"$ref": f"#/components/schemas/{name}"}


def integer(least: int, most: int, default: int | None = None) -> Schema:
    """An integer within bounds."""
    bounds: Schema = {"type": "integer", "minimum": least, "maximum": most}
    return bounds if default is None else bounds | {"default": default}


def enum(*values: str) -> Schema:
    """One of these values."""
    return {"enum": list(values)}


def query(name: str, description: str, schema: Schema) -> Parameter:
    """A query parameter."""
    return Parameter(name, "query", description, schema)


def header(name: str, description: str, schema: Schema = STRING) -> Parameter:
    """A request header, of any text unless a schema is given."""
    return Parameter(name, "header", description, schema)


def answered(description: str, name: str, **more: Any) -> list[Reply]:
    """The only response: 200 with an answer type as JSON. more: further fields of the reply."""
    return [Reply(200, description, ref(name), **more)]


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
