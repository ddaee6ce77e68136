"""What each event's text may hold, by code and schema version: kept, so that none of it changes unseen.

    python -m tests.corpus.vocabulary

adds the versions that are new. One that is there stays as it is: a process of an earlier release would take a
value that it does not know for damage.
"""

import json
from pathlib import Path
from typing import Any

import msgspec
from msgspec import inspect

from orchestrator import codec
from orchestrator.events import Meta, PersonalText

FILE = Path(__file__).parent / "vocabulary.json"


def kept() -> dict[str, Any]:
    """What the file says."""
    return dict(json.loads(FILE.read_text("utf-8")))


def today() -> dict[str, Any]:
    """What this release writes and reads."""
    bodies = {f"{code}/{kind.schema_version}": kind for code, kind in sorted(codec.EVENT_TYPE_BY_CODE.items())}
    return {name: described(kind) for name, kind in {**bodies, "meta": Meta, "private": PersonalText}.items()}


def described(kind: Any) -> Any:
    """A type as plain values: of a struct its members, of a literal its values."""
    return _described(inspect.type_info(kind))


def _described(kind: inspect.Type) -> Any:
    match kind:
        case inspect.StructType():
            return {
                "members": {one.encode_name: _described(one.type) | {"required": one.required} for one in kind.fields}
            }
        case inspect.Metadata(extra={"values": values}) | inspect.LiteralType(values=values):
            return {"values": sorted(values)}
        case inspect.UnionType():
            return {"any": sorted((_described(one) for one in kind.types), key=msgspec.json.encode)}
        case inspect.ListType():
            return {"list": _described(kind.item_type)}
        case inspect.DictType():
            return {"dict": _described(kind.value_type)}
        case _:
            return {"type": type(kind).__name__}


def main() -> None:
    """Write what is new."""
    FILE.write_text(json.dumps(today() | (kept() if FILE.exists() else {}), indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
