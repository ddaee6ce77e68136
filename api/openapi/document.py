"""The OpenAPI 3.1 document, made from the routes, their operations and the msgspec types. Pure."""

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from msgspec.structs import asdict

from api import anchors, models, projections, requests, schemas
from api.errors import STATUS_BY_ERROR_CODE
from api.openapi.vocabulary import (
    JSON_MEDIA_TYPE,
    MISDIRECTED_DESCRIPTION,
    RATE_LIMITED_DESCRIPTION,
    REQUEST_ID_HEADER,
    REQUEST_ID_PARAMETERS,
    RETRY_AFTER_HEADER,
    SSE_MEDIA_TYPE,
    UNAUTHORIZED_DESCRIPTION,
    WWW_AUTHENTICATE_HEADER,
    Header,
    JsonSchema,
    Parameter,
    Reply,
    RequestBody,
    component_ref,
)
from api.routing import ApiRoute
from orchestrator.step_kinds import STEP_KINDS
from projections.progress import Progress

_SERVICE_DESCRIPTION = """\
An event-sourced service for image jobs. `HEAD` works on every `GET` but the streams; `OPTIONS` answers 204 with
`Allow`; unknown query parameters are ignored. A body may be declared as any `application/*+json`. Every response has
`X-Request-Id`. JSON and NDJSON of a kilobyte and more are gzipped on request, streams never."""
_TAG_DESCRIPTIONS = {
    "jobs": "Submit jobs, and read them.",
    "streams": "Server-sent events: live and resumable, without a gap.",
    "log": "The whole log and its anchors.",
    "models": "The models that jobs may use. Models are registered by the command line.",
    "operations": "For operators of the service.",
}
_SECURITY_SCHEMES: JsonSchema = {
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
_SCHEMA_REF_TEMPLATE = "#/components/schemas/{name}"
_NO_NUL_PATTERN = r"^[^\u0000]*$"
_ANSWER_TYPES = (
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
_REQUEST_TYPES = (requests.JobRequest, *requests.PIPELINE_ELEMENT_TYPES)
_HEADERS_BY_ERROR_CODE = {
    "unauthorized": WWW_AUTHENTICATE_HEADER,
    "forbidden": WWW_AUTHENTICATE_HEADER,
    "rate_limited": RETRY_AFTER_HEADER,
    "infra_unavailable": RETRY_AFTER_HEADER,
}
# The keywords of a schema that come first, in this order.
_KEYWORD_ORDER = ("title", "description", "type", "properties", "required")
_SUBSCHEMA_KEYWORDS = ("additionalProperties", "items", "propertyNames")


def build_document(routes: Iterable[ApiRoute]) -> JsonSchema:
    """The whole document, ready to be encoded as JSON."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Dream Forge",
            "version": "1",
            "summary": f"Image jobs: {', then '.join(STEP_KINDS)}.",
            "description": _SERVICE_DESCRIPTION,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/", "description": "This server."}],
        "tags": [{"name": name, "description": text} for name, text in _TAG_DESCRIPTIONS.items()],
        "paths": _path_items(routes),
        "components": {
            "schemas": _component_schemas(),
            "parameters": {one.name: _parameter_object(one) for one in REQUEST_ID_PARAMETERS},
            "headers": {name: asdict(header) for name, header in REQUEST_ID_HEADER.items()},
            "securitySchemes": _SECURITY_SCHEMES,
        },
    }


def _component_schemas() -> dict[str, JsonSchema]:
    answers, requested = _derive_schemas(_ANSWER_TYPES), _derive_schemas(_REQUEST_TYPES)
    for schema in requested.values():
        _allow_null(schema)
        _forbid_nul(schema)
    job_request = requested["JobRequest"]
    job_request["properties"]["pipeline"] = {"type": "null", "description": "Its presence makes a PipelineRequest."}
    for name, rule in requests.SCHEMA_RULES_BY_TYPE.items():
        requested[name] |= rule
    requested["PipelineRequest"] = _pipeline_request_schema(job_request)
    return dict(sorted((answers | requested).items()))


def _derive_schemas(types: tuple[type, ...]) -> dict[str, JsonSchema]:
    _, schemas = msgspec.json.schema_components(types, ref_template=_SCHEMA_REF_TEMPLATE)
    return {name: _normalise_schema(schema) for name, schema in schemas.items()}


def _normalise_schema(schema: JsonSchema) -> JsonSchema:
    """The same schema for all releases of msgspec and Python.

    They differ in the indentation of docstrings (none since Python 3.13), and guarantee no order.
    """
    result: JsonSchema = {}
    for name in sorted(schema, key=_keyword_sort_key):
        value = schema[name]
        if name == "description":
            value = inspect.cleandoc(value)
        elif name == "properties":
            value = {field: _normalise_schema(one) for field, one in value.items()}
        elif name == "required":
            value = sorted(value, key=list(schema["properties"]).index)
        elif name == "enum":
            value = sorted(value, key=msgspec.json.encode)
        elif name == "anyOf":
            value = sorted(map(_normalise_schema, value), key=_alternative_sort_key)
        elif name in _SUBSCHEMA_KEYWORDS and isinstance(value, dict):
            value = _normalise_schema(value)
        result[name] = value
    return result


def _keyword_sort_key(name: str) -> tuple[int, str]:
    return _KEYWORD_ORDER.index(name) if name in _KEYWORD_ORDER else len(_KEYWORD_ORDER), name


def _alternative_sort_key(schema: JsonSchema) -> tuple[bool, bytes]:
    return schema.get("type") == "null", msgspec.json.encode(schema)


def _allow_null(schema: JsonSchema) -> None:
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
            schema["pattern"] = _NO_NUL_PATTERN
        if "propertyNames" in schema:
            schema["propertyNames"] = {"pattern": _NO_NUL_PATTERN} | schema["propertyNames"]
        for one in list(schema.values()):
            _forbid_nul(one)


def _pipeline_request_schema(job_request: JsonSchema) -> JsonSchema:
    steps = [{"$ref": _SCHEMA_REF_TEMPLATE.format(name=step.__name__)} for step in requests.PIPELINE_ELEMENT_TYPES]
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


def _path_items(routes: Iterable[ApiRoute]) -> dict[str, JsonSchema]:
    paths: dict[str, JsonSchema] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation_object(route)
    return paths


def _operation_object(route: ApiRoute) -> JsonSchema:
    operation = route.operation
    return _drop_empty_members(
        {
            "operationId": operation.name,
            "tags": [operation.tag],
            "summary": operation.summary,
            "description": operation.description,
            "parameters": [
                *(_parameter_object(one) for one in operation.parameters),
                *({"$ref": f"#/components/parameters/{one.name}"} for one in REQUEST_ID_PARAMETERS),
            ],
            "requestBody": _request_body_object(operation.body),
            "security": _security_requirements(route),
            "responses": _responses_object(route),
        }
    )


def _request_body_object(body: RequestBody | None) -> JsonSchema:
    if body is None:
        return {}
    return {"required": body.required, "content": {JSON_MEDIA_TYPE: _media_type_object(body)}}


def _security_requirements(route: ApiRoute) -> list[JsonSchema]:
    """A key, or none where the service requires none; for a job's stream also a token."""
    if not route.scopes:
        return []
    token = any(one.name == "access_token" for one in route.operation.parameters)
    return [{"key": []}, {}, *([{"stream_token": []}] if token else [])]


def _responses_object(route: ApiRoute) -> JsonSchema:
    replies = {str(reply.status): _reply_object(reply) for reply in route.operation.replies}
    errors = {
        str(STATUS_BY_ERROR_CODE[code]): _error_response_object(code, text)
        for code, text in _error_descriptions(route).items()
    }
    return dict(sorted((replies | errors).items()))


def _error_descriptions(route: ApiRoute) -> dict[str, str]:
    """The operation's own errors, and those that routes share."""
    streams = any(reply.media == SSE_MEDIA_TYPE for reply in route.operation.replies)
    errors = dict(route.operation.errors) | {"misdirected_request": MISDIRECTED_DESCRIPTION}
    if route.scopes:
        errors |= {
            "unauthorized": UNAUTHORIZED_DESCRIPTION,
            "forbidden": f"The key lacks the scope {' or '.join(route.scopes)}.",
        }
    if route.scopes and not streams:
        errors["rate_limited"] = RATE_LIMITED_DESCRIPTION
    if not streams:
        errors["internal"] = "A bug; the message leaks nothing."
    return errors


def _parameter_object(parameter: Parameter) -> JsonSchema:
    described: JsonSchema = {
        "name": parameter.name,
        "in": parameter.location,
        "description": parameter.description,
        "required": parameter.location == "path",
        "schema": parameter.schema,
    }
    if parameter.schema.get("type") == "array":
        described |= {"style": "form", "explode": False}
    return described


def _reply_object(reply: Reply) -> JsonSchema:
    described: JsonSchema = {"description": reply.description, "headers": _headers_object(reply.headers)}
    if reply.schema is not None:
        described["content"] = {reply.media: _media_type_object(reply)}
    described["links"] = {name: {"operationId": name, "parameters": dict(given)} for name, given in reply.links.items()}
    return _drop_empty_members(described)


def _error_response_object(code: str, text: str) -> JsonSchema:
    extra = _HEADERS_BY_ERROR_CODE.get(code, {})
    example = {"code": code, "message": text, "correlation_id": "…", "detail": {"code": code, "message": text}}
    content = {"schema": component_ref("Error"), "examples": {code: {"value": example}}}
    return {"description": text, "headers": _headers_object(extra), "content": {JSON_MEDIA_TYPE: content}}


def _headers_object(headers: Mapping[str, Header]) -> JsonSchema:
    own = {name: asdict(header) for name, header in headers.items()}
    return own | {name: {"$ref": f"#/components/headers/{name}"} for name in REQUEST_ID_HEADER}


def _media_type_object(body: RequestBody | Reply) -> JsonSchema:
    examples = {name: asdict(example) for name, example in body.examples.items()}
    return _drop_empty_members({"schema": body.schema, "examples": examples})


def _drop_empty_members(described: JsonSchema) -> JsonSchema:
    """Without empty members."""
    return {name: value for name, value in described.items() if value not in ("", [], {})}


def encode_document(routes: Iterable[ApiRoute]) -> bytes:
    """The document as it is committed and served."""
    return msgspec.json.format(msgspec.json.encode(build_document(routes))) + b"\n"
