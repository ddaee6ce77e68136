"""Copies fields between structs. Pure."""

from typing import TypeVar

import msgspec

T = TypeVar("T", bound=msgspec.Struct)


def copy_fields(source: object, struct_type: type[T], **other_fields: object) -> T:
    """A struct with the fields of `source` that have the same names, and others."""
    for name in struct_type.__struct_fields__:
        if name not in other_fields:
            other_fields[name] = getattr(source, name)
    return struct_type(**other_fields)
