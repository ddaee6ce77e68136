"""The OpenAPI document: whole, valid, and the one that is committed."""

import re
import textwrap
from typing import Any

import msgspec
import pytest
from openapi_spec_validator import validate

from api.app import ROUTES
from api.errors import STATUS_BY_ERROR_CODE
from api.openapi.document import build_document, encode_document
from api.requests import parse_job_request
from api.routing import ApiRoute
from tests.kit import project_root

DOCUMENT = build_document(ROUTES)


def test_the_document_is_the_one_that_is_committed() -> None:
    committed = project_root() / "docs" / "openapi" / "openapi.v1.json"
    assert committed.read_bytes() == encode_document(ROUTES), "run `make openapi`, and commit what it writes"


def _as_another_release_words_it(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_as_another_release_words_it(one) for one in reversed(schema)]
    if not isinstance(schema, dict):
        return schema
    reworded = {name: _as_another_release_words_it(value) for name, value in reversed(schema.items())}
    if "properties" in reworded:
        # The order of a type's fields is ours.
        reworded["properties"] = {name: reworded["properties"][name] for name in schema["properties"]}
    if isinstance(schema.get("description"), str):
        first, *others = schema["description"].splitlines(keepends=True)
        reworded["description"] = f"{first}{textwrap.indent(textwrap.dedent(''.join(others)), ' ' * 4)}\n"
    return reworded


def test_the_document_does_not_depend_on_the_releases_of_msgspec_and_python(monkeypatch: pytest.MonkeyPatch) -> None:
    before, derive = encode_document(ROUTES), msgspec.json.schema_components

    def another(types: Any, *, ref_template: str) -> tuple[Any, Any]:
        schemas, components = derive(types, ref_template=ref_template)
        return schemas, {name: _as_another_release_words_it(one) for name, one in components.items()}

    monkeypatch.setattr(msgspec.json, "schema_components", another)
    assert encode_document(ROUTES) == before


def test_the_document_is_valid_openapi() -> None:
    validate(DOCUMENT)


def test_every_route_is_described_and_no_other() -> None:
    served = {(method, route.path) for route in ROUTES for method in (route.methods or set()) - {"HEAD"}}
    described = {(method.upper(), path) for path, methods in DOCUMENT["paths"].items() for method in methods}
    assert described == served


@pytest.mark.parametrize("route", ROUTES, ids=lambda one: one.operation.name)
def test_an_operation_names_the_parameters_of_its_path_and_known_errors(route: ApiRoute) -> None:
    operation = route.operation
    in_path = {one.name for one in operation.parameters if one.location == "path"}
    assert in_path == set(re.findall(r"\{(\w+)\}", route.path))
    assert operation.errors.keys() <= STATUS_BY_ERROR_CODE.keys()
    assert operation.summary


def test_every_example_of_a_request_is_one_that_is_understood() -> None:
    examples = [example for one in ROUTES if one.operation.body for example in one.operation.body.examples.values()]
    assert len(examples) >= 3
    for example in examples:
        assert parse_job_request(msgspec.json.encode(example.value)).request.prompt == "a castle"
