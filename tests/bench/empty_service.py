"""Dream Forge with an engine and an object store that do nothing: what is left is the orchestration.

Run as `dreamforge` is. A step's file is one that was encoded at the start; no object is stored.
"""

import sys
from functools import cache

from PIL import Image

from artifacts import object_store
from artifacts.encoding import encode
from artifacts.stored_object import StoredObject, hash_body
from dreamforge.cli.main import main
from orchestrator.events import StepName
from orchestrator.state import JobState
from runners.fake_renderer import FakeRenderer
from tests.bench.work import SCALE, SIDE


@cache
def _file(side: int) -> bytes:
    return encode(Image.new("RGB", (side, side)), "png")


def _render(_renderer: FakeRenderer, _job: JobState, step: StepName, _index: int, _source: bytes | None) -> bytes:
    return _file(SIDE if step == "generate" else SIDE * SCALE)


async def _put(_store: object_store.ObjectStore, _key: str, body: bytes, _content_type: str) -> StoredObject:
    return await hash_body(body)


async def _get_verified(_store: object_store.ObjectStore, _key: str, _expected: StoredObject) -> bytes:
    return _file(SIDE)


if __name__ == "__main__":
    for owner, name, replacement in (
        (FakeRenderer, "render", _render),
        (object_store.ObjectStore, "put", _put),
        (object_store.ObjectStore, "get_verified", _get_verified),
    ):
        setattr(owner, name, replacement)
    sys.exit(main())
