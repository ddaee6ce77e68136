"""The OpenAPI document: whole, valid, and the one that is committed."""

import re

import msgspec
import pytest
from openapi_spec_validator import validate

from api import openapi
from api.app import ROUTES
from api.errors import STATUS
from api.operations import OPERATIONS, Operation
from api.requests import parse
from tests.kit import project_root

DOCUMENT = openapi.document()


def test_the_document_is_the_one_that_is_committed() -> None:
    committed = project_root() / "docs" / "openapi" / "openapi.v1.json"
    assert committed.read_bytes() == openapi.encoded(), "run `make openapi`, and commit what it writes"


def test_the_document_is_valid_openapi() -> None:
    validate(DOCUMENT)


def test_every_route_is_described_and_no_other() -> None:
    served = {(method, route.path) for route in ROUTES for method in (route.methods or set()) - {"HEAD"}}
    assert {(one.method, one.path) for one in OPERATIONS} == served


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda one: one.name)
def test_an_operation_names_the_parameters_of_its_path_and_known_errors(operation: Operation) -> None:
    in_path = {one.name for one in operation.parameters if one.place == "path"}
    assert in_path == set(re.findall(r"\{(\w+)\}", operation.path))
    assert operation.errors.keys() <= STATUS.keys()
    assert operation.summary


def test_every_example_of_a_request_is_one_that_is_understood() -> None:
    examples = [example for one in OPERATIONS if one.body for example in one.body.examples.values()]
    assert len(examples) >= 3
    for example in examples:
        assert parse(msgspec.json.encode(example.value)).request.prompt == "a castle"
