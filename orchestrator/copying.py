"""Copies fields between structs. Pure."""

from typing import TypeVar

import msgspec

T = TypeVar("T", bound=msgspec.Struct)


def copied(source: object, kind: type[T], **others: object) -> T:
    """A struct with the fields of `source` that have the same names, and others."""
    same = {name: getattr(source, name) for name in kind.__struct_fields__ if name not in others}
    return kind(**same, **others)
