"""The OpenAPI 3.1 document of the service, made from the msgspec types and the table of operations. Pure.

`python -m api.openapi` prints it.
"""

import inspect
import sys
from collections.abc import Mapping
from typing import Any

import msgspec

from api import anchors, models, projections, requests, schemas
from api.errors import STATUS
from api.examples import Example
from api.operations import (
    CHALLENGE,
    DESCRIPTION,
    JSON,
    LIMITED,
    MISDIRECTED,
    OPERATIONS,
    REQUEST_ID,
    REQUEST_IDS,
    RETRY_AFTER,
    SECURITY,
    SSE,
    STRANGER,
    TAGS,
    Header,
    Operation,
    Parameter,
    Reply,
    Schema,
    ref,
)
from orchestrator.step_kinds import STEP_KINDS
from projections.progress import Progress

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
_KEYWORDS = ("title", "description", "type", "properties", "required")
"""The keywords of a schema that come first, in this order."""
_WITH_A_SCHEMA = ("additionalProperties", "items", "propertyNames")


def document() -> Schema:
    """The whole document, ready to be encoded as JSON."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Dream Forge",
            "version": "1",
            "summary": f"Image jobs: {', then '.join(STEP_KINDS)}.",
            "description": DESCRIPTION,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/", "description": "This server."}],
        "tags": [{"name": name, "description": text} for name, text in TAGS.items()],
        "paths": _paths(),
        "components": {
            "schemas": _components(),
            "parameters": {one.name: _parameter(one) for one in REQUEST_IDS},
            "headers": {name: _header(header) for name, header in REQUEST_ID.items()},
            "securitySchemes": SECURITY,
        },
    }


def _components() -> dict[str, Schema]:
    answers, asked = _derived(_ANSWERS), _derived(_REQUESTS)
    for schema in asked.values():
        _take_nulls(schema)
        _refuse_nul(schema)
    job_request = asked["JobRequest"]
    job_request["properties"]["pipeline"] = {"type": "null", "description": "Its presence makes a PipelineRequest."}
    for name, rule in requests.RULES.items():
        asked[name] |= rule
    asked["PipelineRequest"] = _pipeline_request(job_request)
    return dict(sorted((answers | asked).items()))


def _derived(types: tuple[type, ...]) -> dict[str, Schema]:
    _, schemas = msgspec.json.schema_components(types, ref_template=_REF)
    return {name: _normalised(schema) for name, schema in schemas.items()}


def _normalised(schema: Schema) -> Schema:
    """The same schema, whatever releases of msgspec and Python made it.

    They differ in the indentation of docstrings (since Python 3.13 none is left), and promise no order.
    """
    result: Schema = {}
    for name in sorted(schema, key=_as_keyword):
        value = schema[name]
        if name == "description":
            value = inspect.cleandoc(value)
        elif name == "properties":
            value = {field: _normalised(one) for field, one in value.items()}
        elif name == "required":
            value = sorted(value, key=list(schema["properties"]).index)
        elif name == "enum":
            value = sorted(value, key=msgspec.json.encode)
        elif name == "anyOf":
            value = sorted(map(_normalised, value), key=_as_alternative)
        elif name in _WITH_A_SCHEMA and isinstance(value, dict):
            value = _normalised(value)
        result[name] = value
    return result


def _as_keyword(name: str) -> tuple[int, str]:
    return _KEYWORDS.index(name) if name in _KEYWORDS else len(_KEYWORDS), name


def _as_alternative(schema: Schema) -> tuple[bool, bytes]:
    return schema.get("type") == "null", msgspec.json.encode(schema)


def _take_nulls(schema: Schema) -> None:
    """In a request null equals absent, for every field that may be absent."""
    for name, field in schema["properties"].items():
        if name in schema["required"] or {"type": "null"} in field.get("anyOf", []):
            continue
        default = field.pop("default")
        schema["properties"][name] = {"anyOf": [field, {"type": "null"}]}
        # Generators of clients stumble over a default that is an object.
        if default != {}:
            schema["properties"][name]["default"] = default


def _refuse_nul(schema: Any) -> None:
    """No text holds U+0000, nor does any key."""
    if isinstance(schema, list):
        for one in schema:
            _refuse_nul(one)
    if isinstance(schema, dict):
        if schema.get("type") == "string" and "format" not in schema:
            schema["pattern"] = _NO_NUL
        if "propertyNames" in schema:
            schema["propertyNames"] = {"pattern": _NO_NUL} | schema["propertyNames"]
        for one in list(schema.values()):
            _refuse_nul(one)


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


def _paths() -> dict[str, Schema]:
    paths: dict[str, Schema] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(operation)
    return paths


def _operation(operation: Operation) -> Schema:
    described: Schema = {
        "operationId": operation.name,
        "tags": [operation.tag],
        "summary": operation.summary,
        "description": operation.description,
        "parameters": [
            *(_parameter(one) for one in operation.parameters),
            *({"$ref": f"#/components/parameters/{one.name}"} for one in REQUEST_IDS),
        ],
    }
    if operation.body is not None:
        content = {"schema": operation.body.schema, "examples": _examples(operation.body.examples)}
        described["requestBody"] = {"required": operation.body.required, "content": {JSON: _filled(content)}}
    replies = {str(reply.status): _reply(reply) for reply in operation.replies}
    streams = any(reply.media == SSE for reply in operation.replies)
    errors = (
        dict(operation.errors)
        | {"misdirected_request": MISDIRECTED}
        | ({} if streams else {"internal": "A bug; the message leaks nothing."})
    )
    if operation.scopes:
        errors |= {"unauthorized": STRANGER, "forbidden": f"The key lacks the scope {' or '.join(operation.scopes)}."}
        errors |= {} if streams else {"rate_limited": LIMITED}
        token = any(one.name == "access_token" for one in operation.parameters)
        described["security"] = [{"key": []}, {}, *([{"stream_token": []}] if token else [])]
    described["responses"] = dict(
        sorted((replies | {str(STATUS[code]): _error(code, errors[code]) for code in errors}).items())
    )
    return _filled(described)


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
        content = {"schema": reply.schema, "examples": _examples(reply.examples)}
        described["content"] = {reply.media: _filled(content)}
    described["links"] = {name: {"operationId": name, "parameters": dict(given)} for name, given in reply.links.items()}
    return _filled(described)


def _error(code: str, text: str) -> Schema:
    extra = _ERROR_HEADERS.get(code, {})
    example = {"code": code, "message": text, "correlation_id": "…", "detail": {"code": code, "message": text}}
    content = {"schema": ref("Error"), "examples": {code: {"value": example}}}
    return {"description": text, "headers": _headers(extra), "content": {JSON: content}}


def _headers(headers: Mapping[str, Header]) -> Schema:
    own = {name: _header(header) for name, header in headers.items()}
    return own | {name: {"$ref": f"#/components/headers/{name}"} for name in REQUEST_ID}


def _header(header: Header) -> Schema:
    return {"description": header.description, "schema": header.schema}


def _examples(examples: Mapping[str, Example]) -> Schema:
    return {name: {"summary": example.summary, "value": example.value} for name, example in examples.items()}


def _filled(described: Schema) -> Schema:
    """Without the members that say nothing."""
    return {name: value for name, value in described.items() if value not in ("", [], {})}


def encoded() -> bytes:
    """The document as it is committed and served."""
    return msgspec.json.format(msgspec.json.encode(document())) + b"\n"


if __name__ == "__main__":
    sys.stdout.buffer.write(encoded())
