"""Size and hash of a content, however long it is and however it arrives."""

import hashlib
import threading
from typing import Any

import pytest

from artifacts import stored_object
from artifacts.stored_object import INLINE_HASH_BYTES, ContentHash, StoredObject, hash_body


@pytest.mark.parametrize("size", [0, 1, INLINE_HASH_BYTES - 1, INLINE_HASH_BYTES, 3 * INLINE_HASH_BYTES + 1])
async def test_a_hash_does_not_depend_on_the_chunks(size: int) -> None:
    body = bytes(range(256)) * (size // 256) + bytes(size % 256)
    expected = StoredObject(size, hashlib.sha256(body).hexdigest())
    content = ContentHash()
    for start in range(0, size, 700_000):
        await content.update(body[start : start + 700_000])
    assert content.result() == await hash_body(body) == stored_object.stored_object(body) == expected


async def test_a_long_body_does_not_hold_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a body of 1 MiB, then another thread hashes it; a short one is hashed at once."""
    threads = []

    class Observed:
        def update(self, _: bytes) -> None:
            threads.append(threading.current_thread())

        def hexdigest(self) -> str:
            return ""

    def sha256(*_: Any) -> Observed:
        return Observed()

    monkeypatch.setattr(hashlib, "sha256", sha256)
    await hash_body(bytes(INLINE_HASH_BYTES - 1))
    await hash_body(bytes(INLINE_HASH_BYTES))
    short, long = threads
    assert short is threading.current_thread()
    assert long is not threading.current_thread()
