"""What may be asked of a model, by its `parameters_schema`: JSON Schema, draft 2020-12. Pure."""

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

import msgspec
from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, best_match
from referencing import Registry
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012

_LONGEST_REASON = 200
_KNOWN_SCHEMAS = 256


class BadSchema(Exception):
    """Why a schema can't be used."""


class SchemaViolation(msgspec.Struct, frozen=True):
    """Why parameters violate a schema. parameter: the one that does; None if no single one does."""

    parameter: str | None
    reason: str


def check(schema: Mapping[str, Any]) -> None:
    """Raise `BadSchema` unless it is a schema that stands by itself: nothing is ever fetched for it."""
    _validator(msgspec.json.encode(schema))


def violation(schema: Mapping[str, Any], parameters: Mapping[str, Any]) -> SchemaViolation | None:
    """How parameters violate a schema; None if they don't. Raises `BadSchema`."""
    found = best_match(_validator(msgspec.json.encode(schema)).iter_errors(parameters))
    if found is None:
        return None
    parameter = str(found.absolute_path[0]) if found.absolute_path else None
    return SchemaViolation(parameter, found.message[:_LONGEST_REASON])


@lru_cache(maxsize=_KNOWN_SCHEMAS)
def _validator(text: bytes) -> Draft202012Validator:
    schema = msgspec.json.decode(text)
    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        raise BadSchema(f"{error.json_path}: {error.message[:_LONGEST_REASON]}") from None
    registry: Registry[Any] = Registry().with_resource("", DRAFT202012.create_resource(schema))
    resolver = registry.resolver()
    for reference in _references(schema):
        try:
            resolver.lookup(reference)
        except Unresolvable:
            raise BadSchema(f"the reference {reference!r} leads to nothing within it") from None
    return Draft202012Validator(schema, registry=registry)


def _references(part: Any) -> Iterator[str]:
    """Every reference of a schema, and of whatever looks like one."""
    match part:
        case dict():
            for name, value in part.items():
                if name in {"$ref", "$dynamicRef"} and isinstance(value, str):
                    yield value
                yield from _references(value)
        case list():
            for value in part:
                yield from _references(value)
