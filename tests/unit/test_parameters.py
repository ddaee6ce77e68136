"""What a model's schema admits, and which schemas can be used at all."""

from typing import Any

import pytest

from model_registry.parameters import BadSchema, SchemaViolation, expect_valid_schema, find_violation
from model_registry.registry import default_schema

SMALL = {
    "type": "object",
    "properties": {
        "width": {"maximum": 768, "multipleOf": 64},
        "scheduler": {"$ref": "#/$defs/scheduler"},
        "count": {"maximum": 4},
    },
    "$defs": {"scheduler": {"enum": ["euler", "ddim"]}},
}


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ({"width": 768, "scheduler": "euler", "count": 4, "prompt": "x"}, None),
        ({"width": 1024}, SchemaViolation("width", "1024 is greater than the maximum of 768")),
        ({"scheduler": "unipc"}, SchemaViolation("scheduler", "'unipc' is not one of ['euler', 'ddim']")),
        ({"count": 5}, SchemaViolation("count", "5 is greater than the maximum of 4")),
    ],
)
def test_what_a_schema_does_not_admit_is_named(asked: dict[str, Any], found: SchemaViolation | None) -> None:
    assert find_violation(SMALL, asked) == found


def test_what_no_single_parameter_is_to_blame_for_is_told() -> None:
    square = {"oneOf": [{"required": ["a"]}, {"required": ["b"]}]}
    found = find_violation(square, {})
    assert found is not None
    assert found.parameter is None


def test_a_long_text_is_not_repeated_whole() -> None:
    found = find_violation({"properties": {"prompt": {"maxLength": 3}}}, {"prompt": "x" * 4000})
    assert found is not None
    assert len(found.reason) <= 200


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"type": "number of pixels"}, r"\$.type"),
        ({"properties": {"width": {"maximum": "768"}}}, r"\$.properties.width.maximum"),
        ({"$ref": "https://example.org/schema.json"}, "leads to nothing within it"),
        ({"properties": {"width": {"$ref": "#/$defs/width"}}}, "leads to nothing within it"),
        ({"$ref": "file:///etc/passwd"}, "leads to nothing within it"),
    ],
)
def test_a_schema_that_cannot_be_used_is_rejected(schema: dict[str, Any], reason: str) -> None:
    """Given one that is none, or that needs what lies elsewhere, then it is told what is wrong, and nothing fetched."""
    with pytest.raises(BadSchema, match=reason):
        expect_valid_schema(schema)
    with pytest.raises(BadSchema, match=reason):
        find_violation(schema, {})


@pytest.mark.parametrize("kind", ["generator", "gan-upscaler", "diffusion-upscaler"])
def test_the_schemas_of_models_without_one_can_be_used(kind: Any) -> None:
    expect_valid_schema(default_schema(kind))
