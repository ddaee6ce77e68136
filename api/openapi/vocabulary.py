"""The types of which operations are described in OpenAPI, and what several nouns share. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import msgspec

from api.examples import Example
from orchestrator import codec
from orchestrator.events import Category

JsonSchema = dict[str, Any]

JSON_MEDIA_TYPE, NDJSON_MEDIA_TYPE, SSE_MEDIA_TYPE, TEXT_MEDIA_TYPE, HTML_MEDIA_TYPE = (
    "application/json",
    "application/x-ndjson",
    "text/event-stream",
    "text/plain",
    "text/html",
)


STRING_SCHEMA: JsonSchema = {"type": "string"}


class Parameter(msgspec.Struct, frozen=True):
    """A parameter of the path, the query or the headers."""

    name: str
    location: Literal["path", "query", "header"]
    description: str
    schema: JsonSchema


class Header(msgspec.Struct, frozen=True):
    """A response header."""

    description: str
    schema: JsonSchema = msgspec.field(default_factory=lambda: STRING_SCHEMA)


class Reply(msgspec.Struct, frozen=True):
    """A response that is not an error.

    schema: None if there is no body. links: operations that take values of this response, with their parameters.
    """

    status: int
    description: str
    schema: JsonSchema | None = None
    media: str = JSON_MEDIA_TYPE
    headers: Mapping[str, Header] = {}
    examples: Mapping[str, Example] = {}
    links: Mapping[str, Mapping[str, str]] = {}


class RequestBody(msgspec.Struct, frozen=True):
    """The body of a request."""

    schema: JsonSchema
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


def component_ref(name: str) -> JsonSchema:
    """A schema of the components."""
    return {"$ref": f"#/components/schemas/{name}"}


def integer_schema(minimum: int, maximum: int, default: int | None = None) -> JsonSchema:
    """An integer within bounds."""
    bounds: JsonSchema = {"type": "integer", "minimum": minimum, "maximum": maximum}
    return bounds if default is None else bounds | {"default": default}


def enum_schema(*values: str) -> JsonSchema:
    """One of these values."""
    return {"enum": list(values)}


def query_parameter(name: str, description: str, schema: JsonSchema) -> Parameter:
    """A query parameter."""
    return Parameter(name, "query", description, schema)


def header_parameter(name: str, description: str, schema: JsonSchema = STRING_SCHEMA) -> Parameter:
    """A request header, of any text unless a schema is given."""
    return Parameter(name, "header", description, schema)


def json_replies(description: str, schema_name: str, **reply_fields: Any) -> list[Reply]:
    """The only response: 200 with an answer type as JSON. more: further fields of the reply."""
    return [Reply(200, description, component_ref(schema_name), **reply_fields)]


UUID_SCHEMA: JsonSchema = {"type": "string", "format": "uuid"}
TIME_SCHEMA: JsonSchema = {"type": "string", "format": "date-time", "examples": ["2026-01-02T12:00:00Z"]}

CODES_PARAMETER = query_parameter(
    "codes",
    "Only events of these codes.",
    {"type": "array", "items": enum_schema(*sorted(codec.EVENT_CODES)), "minItems": 1},
)
CATEGORY_PARAMETER = query_parameter("category", "Only events of this category.", enum_schema(*get_args(Category)))
LAST_EVENT_ID_PARAMETERS = (
    header_parameter("Last-Event-ID", "The last `id:` that the client received; the stream continues after it."),
    query_parameter("last_event_id", "The same, for clients that can't set headers.", STRING_SCHEMA),
)
REQUEST_ID_PARAMETERS = (
    header_parameter(
        "X-Client-Request-Id", "An id for this request, 1 to 128 printable ASCII characters; wins over the next."
    ),
    header_parameter("X-Request-Id", "The same. Without either, the service makes one."),
)

REQUEST_ID_HEADER = {"X-Request-Id": Header("The request's id.", {"type": "string", "minLength": 1, "maxLength": 128})}
RETRY_AFTER_HEADER = {
    "Retry-After": Header("Seconds to wait before the next try.", {"type": "string", "pattern": "^[0-9]+$"})
}
WWW_AUTHENTICATE_HEADER = {
    "WWW-Authenticate": Header("`Bearer`, with `error` where a key or a token was given (RFC 6750).")
}
NO_STORE_HEADER = {"Cache-Control": Header("`no-store`.", {"const": "no-store"})}

UNAUTHORIZED_DESCRIPTION = "No API key, or one that is unknown or was revoked."
MISDIRECTED_DESCRIPTION = "The service does not answer for this `Host` (`DF_ALLOWED_HOSTS`)."
RATE_LIMITED_DESCRIPTION = "More requests a second, or more open jobs, than this tenant may have; see `Retry-After`."
UNAVAILABLE_ERROR = {"infra_unavailable": "The database can't be reached; see `Retry-After`."}
INVALID_QUERY_ERROR = {"invalid_input": "A parameter is malformed or out of bounds; `details.field` names it."}
STREAM_ERRORS_NOTE = (
    " Where other routes answer 429, 503 or 500, this one answers 200 with a `retry:` of its own and closes, since any"
    " other status makes an EventSource stop for good."
)

# A string for clients that read the body as a whole, an object for each message for clients that know the format.
_SSE_MESSAGES_SCHEMA: JsonSchema = {
    "type": ["string", "object"],
    "properties": {
        "event": STRING_SCHEMA,
        "data": STRING_SCHEMA | {"contentMediaType": JSON_MEDIA_TYPE},
        "id": STRING_SCHEMA,
    },
}


def stream_reply(examples: Mapping[str, Example]) -> Reply:
    """The response of a live stream."""
    return Reply(
        200,
        "The events.",
        _SSE_MESSAGES_SCHEMA,
        media=SSE_MEDIA_TYPE,
        headers=NO_STORE_HEADER | {"X-Accel-Buffering": Header("`no`.", {"const": "no"})},
        examples=examples,
    )
