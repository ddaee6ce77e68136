"""The differences between two views of a job. Pure."""

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from projections.job_view import JobView


class Difference(msgspec.Struct, frozen=True):
    """A field that differs, with its value in each view; None where it is absent.

    path: names joined by dots, a step by its name and an artifact by its step and item: `steps.generate.status`.
    """

    path: str
    before: Any
    after: Any


def view_differences(before: JobView | None, after: JobView | None) -> list[Difference]:
    """The fields in which two views differ, ordered by path."""
    if before == after:
        return []
    old, new = _leaves_by_path(before), _leaves_by_path(after)
    return [
        Difference(path, old.get(path), new.get(path))
        for path in sorted(old.keys() | new.keys())
        if old.get(path) != new.get(path)
    ]


def _leaves_by_path(view: JobView | None) -> dict[str, Any]:
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
    return dict(_iterate_leaves("", tree))


def _iterate_leaves(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    if not isinstance(value, Mapping):
        yield path, value
        return
    for name, part in value.items():
        yield from _iterate_leaves(f"{path}.{name}" if path else str(name), part)
