"""An event's text means to every release what it meant to the one that wrote it; a change needs a schema version."""

from typing import Any, Literal

import msgspec
import pytest

from tests.corpus.vocabulary import described, kept, today


def changes(before: dict[str, Any], after: dict[str, Any], path: str = "") -> list[str]:
    """Where an earlier release would take a text for damage, or miss something: all that is no new optional member."""
    if before.keys() != after.keys() or before.get("required") != after.get("required"):
        return [path]
    if "members" in before:
        old, new = before["members"], after["members"]
        found = [f"{path}.{name}" for name in old.keys() - new.keys()]
        found += [f"{path}.{name}" for name in new.keys() - old.keys() if new[name]["required"]]
        return found + [
            one for name in old.keys() & new.keys() for one in changes(old[name], new[name], f"{path}.{name}")
        ]
    if "any" in before:
        found = [one for one in before["any"] if all(changes(one, other) for other in after["any"])]
        return [path] if found or len(before["any"]) != len(after["any"]) else []
    inner = next((kind for kind in ("list", "dict") if kind in before), None)
    if inner is not None:
        return changes(before[inner], after[inner], path)
    return [] if before == after else [path]


@pytest.mark.parametrize("name", today())
def test_no_event_changes_without_a_new_schema_version(name: str) -> None:
    """Given an event of today, then it is what the file keeps: else give it a new version and an upcast, and add it."""
    assert name in kept(), "run `python -m tests.corpus.vocabulary`"
    assert changes(kept()[name], today()[name]) == []


def test_a_wider_enum_is_a_change() -> None:
    class Before(msgspec.Struct):
        reason: Literal["failure"]

    class After(msgspec.Struct):
        reason: Literal["failure", "hand_back"]

    assert changes(described(Before), described(After)) == [".reason"]


def test_a_new_member_that_may_be_left_out_is_none() -> None:
    class Before(msgspec.Struct):
        reason: str

    class After(msgspec.Struct):
        reason: str
        since: int | None = None

    class Worse(msgspec.Struct):
        reason: str
        since: int

    assert changes(described(Before), described(After)) == []
    assert changes(described(Before), described(Worse)) == [".since"]
