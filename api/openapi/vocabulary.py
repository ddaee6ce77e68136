"""The types of which operations are described in OpenAPI. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec

from api.examples import Example

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

    errors: by code of `api.errors.STATUS`, the reason; `document` adds those that all operations share.
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
