"""The OpenAPI 3.1 document, made from the routes, their operations and the msgspec types. Pure."""

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from msgspec.structs import asdict

from api import anchors, models, projections, requests, schemas
from api.errors import STATUS_BY_ERROR_CODE
from api.openapi.vocabulary import (
    CHALLENGE,
    JSON,
    LIMITED,
    MISDIRECTED,
    NO_KEY,
    REQUEST_ID,
    REQUEST_IDS,
    RETRY_AFTER,
    SSE,
    Header,
    Parameter,
    Reply,
    RequestBody,
    Schema,
    ref,
)
from api.routing import ApiRoute
from orchestrator.step_kinds import STEP_KINDS
from projections.progress import Progress

_DESCRIPTION = """\
An event-sourced service for image jobs. `HEAD` works on every `GET` but the streams; `OPTIONS` answers 204 with
`Allow`; unknown query parameters are ignored. A body may be declared as any `application/*+json`. Every response has
`X-Request-Id`. JSON and NDJSON of a kilobyte and more are gzipped on request, streams never."""
_TAGS = {
    "jobs": "Submit jobs, and read them.",
    "streams": "Server-sent events: live and resumable, without a gap.",
    "log": "The whole log and its anchors.",
    "models": "The models that jobs may use. Models are registered by the command line.",
    "operations": "For operators of the service.",
}
_SECURITY: Schema = {
    "key": {
        "type": "http",
        "scheme": "bearer",
        "description": "An API key, if the service requires one; `dreamforge keys create` makes it.",
    },
    "stream_token": {
        "type": "apiKey",
        "in": "query",
        "name": "access_token",
        "description": "A token of `createStreamToken`, for a browser's EventSource.",
    },
}
_REF = "#/components/schemas/{name}"
_NO_NUL = r"^[^\u0000]*$"
_ANSWERS = (
    schemas.Service,
    schemas.JobAnswer,
    schemas.StreamToken,
    schemas.Job,
    schemas.JobList,
    schemas.ArtifactList,
    schemas.ArtifactPlace,
    schemas.History,
    schemas.LogPage,
    schemas.LogLine,
    schemas.Error,
    schemas.Liveness,
    schemas.Readiness,
    anchors.AnchorList,
    projections.ProjectionList,
    models.ModelList,
    models.ModelDetail,
    Progress,
)
_REQUESTS = (requests.JobRequest, *requests.PIPELINE)
_ERROR_HEADERS = {
    "unauthorized": CHALLENGE,
    "forbidden": CHALLENGE,
    "rate_limited": RETRY_AFTER,
    "infra_unavailable": RETRY_AFTER,
}
# The keywords of a schema that come first, in this order.
_KEYWORDS = ("title", "description", "type", "properties", "required")
_SUBSCHEMAS = ("additionalProperties", "items", "propertyNames")


def document(routes: Iterable[ApiRoute]) -> Schema:
    """The whole document, ready to be encoded as JSON."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Dream Forge",
            "version": "1",
            "summary": f"Image jobs: {', then '.join(STEP_KINDS)}.",
            "description": _DESCRIPTION,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/", "description": "This server."}],
        "tags": [{"name": name, "description": text} for name, text in _TAGS.items()],
        "paths": _paths(routes),
        "components": {
            "schemas": _components(),
            "parameters": {one.name: _parameter(one) for one in REQUEST_IDS},
            "headers": {name: asdict(header) for name, header in REQUEST_ID.items()},
            "securitySchemes": _SECURITY,
        },
    }


def _components() -> dict[str, Schema]:
    answers, requested = _derive_schemas(_ANSWERS), _derive_schemas(_REQUESTS)
    for schema in requested.values():
        _allow_null(schema)
        _forbid_nul(schema)
    job_request = requested["JobRequest"]
    job_request["properties"]["pipeline"] = {"type": "null", "description": "Its presence makes a PipelineRequest."}
    for name, rule in requests.RULES.items():
        requested[name] |= rule
    requested["PipelineRequest"] = _pipeline_request(job_request)
    return dict(sorted((answers | requested).items()))


def _derive_schemas(types: tuple[type, ...]) -> dict[str, Schema]:
    _, schemas = msgspec.json.schema_components(types, ref_template=_REF)
    return {name: _normalise(schema) for name, schema in schemas.items()}


def _normalise(schema: Schema) -> Schema:
    """The same schema for all releases of msgspec and Python.

    They differ in the indentation of docstrings (none since Python 3.13), and guarantee no order.
    """
    result: Schema = {}
    for name in sorted(schema, key=_as_keyword):
        value = schema[name]
        if name == "description":
            value = inspect.cleandoc(value)
        elif name == "properties":
            value = {field: _normalise(one) for field, one in value.items()}
        elif name == "required":
            value = sorted(value, key=list(schema["properties"]).index)
        elif name == "enum":
            value = sorted(value, key=msgspec.json.encode)
        elif name == "anyOf":
            value = sorted(map(_normalise, value), key=_as_alternative)
        elif name in _SUBSCHEMAS and isinstance(value, dict):
            value = _normalise(value)
        result[name] = value
    return result


def _as_keyword(name: str) -> tuple[int, str]:
    return _KEYWORDS.index(name) if name in _KEYWORDS else len(_KEYWORDS), name


def _as_alternative(schema: Schema) -> tuple[bool, bytes]:
    return schema.get("type") == "null", msgspec.json.encode(schema)


def _allow_null(schema: Schema) -> None:
    """Allow null for every optional field of a request: null means absent."""
    for name, field in schema["properties"].items():
        if name in schema["required"] or {"type": "null"} in field.get("anyOf", []):
            continue
        default = field.pop("default")
        schema["properties"][name] = {"anyOf": [field, {"type": "null"}]}
        # Client generators fail on a default that is an object.
        if default != {}:
            schema["properties"][name]["default"] = default


def _forbid_nul(schema: Any) -> None:
    """Forbid U+0000 in all texts and keys."""
    if isinstance(schema, list):
        for one in schema:
            _forbid_nul(one)
    if isinstance(schema, dict):
        if schema.get("type") == "string" and "format" not in schema:
            schema["pattern"] = _NO_NUL
        if "propertyNames" in schema:
            schema["propertyNames"] = {"pattern": _NO_NUL} | schema["propertyNames"]
        for one in list(schema.values()):
            _forbid_nul(one)


def _pipeline_request(job_request: Schema) -> Schema:
    steps = [{"$ref": _REF.format(name=step.__name__)} for step in requests.PIPELINE]
    return {
        "title": "PipelineRequest",
        "description": "The same as `chain` with `impl: image`, as a list of exactly these two steps.",
        "type": "object",
        "properties": {
            "pipeline": {"type": "array", "prefixItems": steps, "minItems": 2, "maxItems": 2},
            "metadata": job_request["properties"]["metadata"],
        },
        "required": ["pipeline"],
        "additionalProperties": False,
    }


def _paths(routes: Iterable[ApiRoute]) -> dict[str, Schema]:
    paths: dict[str, Schema] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    return paths


def _operation(route: ApiRoute) -> Schema:
    operation = route.operation
    return _without_empty(
        {
            "operationId": operation.name,
            "tags": [operation.tag],
            "summary": operation.summary,
            "description": operation.description,
            "parameters": [
                *(_parameter(one) for one in operation.parameters),
                *({"$ref": f"#/components/parameters/{one.name}"} for one in REQUEST_IDS),
            ],
            "requestBody": _request_body(operation.body),
            "security": _security(route),
            "responses": _responses(route),
        }
    )


def _request_body(body: RequestBody | None) -> Schema:
    if body is None:
        return {}
    return {"required": body.required, "content": {JSON: _content(body)}}


def _security(route: ApiRoute) -> list[Schema]:
    """A key, or none where the service requires none; for a job's stream also a token."""
    if not route.scopes:
        return []
    token = any(one.name == "access_token" for one in route.operation.parameters)
    return [{"key": []}, {}, *([{"stream_token": []}] if token else [])]


def _responses(route: ApiRoute) -> Schema:
    replies = {str(reply.status): _reply(reply) for reply in route.operation.replies}
    errors = {str(STATUS_BY_ERROR_CODE[code]): _error(code, text) for code, text in _errors(route).items()}
    return dict(sorted((replies | errors).items()))


def _errors(route: ApiRoute) -> dict[str, str]:
    """The operation's own errors, and those that routes share."""
    streams = any(reply.media == SSE for reply in route.operation.replies)
    errors = dict(route.operation.errors) | {"misdirected_request": MISDIRECTED}
    if route.scopes:
        errors |= {"unauthorized": NO_KEY, "forbidden": f"The key lacks the scope {' or '.join(route.scopes)}."}
    if route.scopes and not streams:
        errors["rate_limited"] = LIMITED
    if not streams:
        errors["internal"] = "A bug; the message leaks nothing."
    return errors


def _parameter(parameter: Parameter) -> Schema:
    described: Schema = {
        "name": parameter.name,
        "in": parameter.location,
        "description": parameter.description,
        "required": parameter.location == "path",
        "schema": parameter.schema,
    }
    if parameter.schema.get("type") == "array":
        described |= {"style": "form", "explode": False}
    return described


def _reply(reply: Reply) -> Schema:
    described: Schema = {"description": reply.description, "headers": _headers(reply.headers)}
    if reply.schema is not None:
        described["content"] = {reply.media: _content(reply)}
    described["links"] = {name: {"operationId": name, "parameters": dict(given)} for name, given in reply.links.items()}
    return _without_empty(described)


def _error(code: str, text: str) -> Schema:
    extra = _ERROR_HEADERS.get(code, {})
    example = {"code": code, "message": text, "correlation_id": "…", "detail": {"code": code, "message": text}}
    content = {"schema": ref("Error"), "examples": {code: {"value": example}}}
    return {"description": text, "headers": _headers(extra), "content": {JSON: content}}


def _headers(headers: Mapping[str, Header]) -> Schema:
    own = {name: asdict(header) for name, header in headers.items()}
    return own | {name: {"$ref": f"#/components/headers/{name}"} for name in REQUEST_ID}


def _content(body: RequestBody | Reply) -> Schema:
    examples = {name: asdict(example) for name, example in body.examples.items()}
    return _without_empty({"schema": body.schema, "examples": examples})


def _without_empty(described: Schema) -> Schema:
    """Without empty members."""
    return {name: value for name, value in described.items() if value not in ("", [], {})}


def encoded(routes: Iterable[ApiRoute]) -> bytes:
    """The document as it is committed and served."""
    return msgspec.json.format(msgspec.json.encode(document(routes))) + b"\n"
