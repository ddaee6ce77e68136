"""What two views of a job differ in. Pure."""

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from projections.job_view import JobView


class Difference(msgspec.Struct, frozen=True):
    """A place of a view and what stands there in each; None where there is nothing.

    path: names with dots, a step by its name and an artifact by its step and item, such as `steps.generate.status`.
    """

    path: str
    before: Any
    after: Any


def differences(before: JobView | None, after: JobView | None) -> list[Difference]:
    """Every place at which two views differ, by its path."""
    if before == after:
        return []
    one, other = _places(before), _places(after)
    return [
        Difference(path, one.get(path), other.get(path))
        for path in sorted(one.keys() | other.keys())
        if one.get(path) != other.get(path)
    ]


def _places(view: JobView | None) -> dict[str, Any]:
    if view is None:
        return {}
    names = {step.step_id: step.name for step in view.steps}
    tree = msgspec.to_builtins(view) | {
        "steps": {step.name: msgspec.to_builtins(step) for step in view.steps},
        "artifacts": {
            f"{names.get(artifact.step_id, artifact.step_id)}.{artifact.item_index}": msgspec.to_builtins(artifact)
            for artifact in view.artifacts
        },
    }
    return dict(_leaves("", tree))


def _leaves(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    if not isinstance(value, Mapping):
        yield path, value
        return
    for name, part in value.items():
        yield from _leaves(f"{path}.{name}" if path else str(name), part)
