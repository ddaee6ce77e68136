"""Validates a request's parameters against a model's `parameters_schema` (JSON Schema, draft 2020-12). Pure."""

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

import msgspec
from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, best_match
from referencing import Registry
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012

_MAX_REASON_LENGTH = 200
_MAX_CACHED_VALIDATORS = 256


class BadSchema(Exception):
    """A schema cannot be used; the message says why."""


class SchemaViolation(msgspec.Struct, frozen=True):
    """Why parameters violate a schema. parameter: its name; None if the violation is not of a single one."""

    parameter: str | None
    reason: str


def expect_valid_schema(schema: Mapping[str, Any]) -> None:
    """Raise `BadSchema` unless the schema is valid and self-contained. Remote references are never fetched."""
    _create_validator(msgspec.json.encode(schema))


def find_violation(schema: Mapping[str, Any], parameters: Mapping[str, Any]) -> SchemaViolation | None:
    """The most relevant violation of a schema; None if the parameters are valid. Raises `BadSchema`."""
    error = best_match(_create_validator(msgspec.json.encode(schema)).iter_errors(parameters))
    if error is None:
        return None
    parameter = str(error.absolute_path[0]) if error.absolute_path else None
    return SchemaViolation(parameter, error.message[:_MAX_REASON_LENGTH])


@lru_cache(maxsize=_MAX_CACHED_VALIDATORS)
def _create_validator(schema_json: bytes) -> Draft202012Validator:
    schema = msgspec.json.decode(schema_json)
    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        raise BadSchema(f"{error.json_path}: {error.message[:_MAX_REASON_LENGTH]}") from None
    registry: Registry[Any] = Registry().with_resource("", DRAFT202012.create_resource(schema))
    resolver = registry.resolver()
    for reference in _find_references(schema):
        try:
            resolver.lookup(reference)
        except Unresolvable:
            raise BadSchema(f"the reference {reference!r} leads to nothing within it") from None
    return Draft202012Validator(schema, registry=registry)


def _find_references(part: Any) -> Iterator[str]:
    """Every `$ref` and `$dynamicRef` in a schema, also where it is plain data."""
    match part:
        case dict():
            for name, value in part.items():
                if name in {"$ref", "$dynamicRef"} and isinstance(value, str):
                    yield value
                yield from _find_references(value)
        case list():
            for value in part:
                yield from _find_references(value)
