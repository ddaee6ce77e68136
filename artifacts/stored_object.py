"""Size and hash of an object's content."""

import asyncio
import hashlib

import msgspec

INLINE_HASH_BYTES = 2**20
"""What is shorter is hashed on the event loop, in a millisecond at most; the rest in a thread."""


class StoredObject(msgspec.Struct, frozen=True):
    """Size in bytes and SHA-256 (lower-case hex) of an object's content."""

    size: int
    sha256: str


class ContentHash:
    """Size and hash of a content that arrives in chunks."""

    def __init__(self) -> None:
        self._size = 0
        self._digest = hashlib.sha256()

    async def update(self, chunk: bytes) -> None:
        """Add the next chunk; a long one in a thread."""
        self._size += len(chunk)
        if len(chunk) < INLINE_HASH_BYTES:
            self._digest.update(chunk)
        else:
            await asyncio.to_thread(self._digest.update, chunk)

    def result(self) -> StoredObject:
        """Size and hash of what was added."""
        return StoredObject(self._size, self._digest.hexdigest())


def stored_object(body: bytes) -> StoredObject:
    """Size and hash of an object with this content."""
    return StoredObject(len(body), hashlib.sha256(body).hexdigest())


async def hash_body(body: bytes) -> StoredObject:
    """As `stored_object`, without holding the event loop for a long body."""
    content = ContentHash()
    await content.update(body)
    return content.result()
