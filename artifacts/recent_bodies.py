"""The bodies that this process has stored last, so that it need not fetch them again."""

from collections import OrderedDict
from typing import NamedTuple

from artifacts.stored_object import StoredObject

MAX_BYTES = 64 * 2**20
MAX_BODY_BYTES = 16 * 2**20


class RecentBody(NamedTuple):
    """A body, its size and hash, and the ETag that the store gave to the object."""

    body: bytes
    stored: StoredObject
    e_tag: str


class RecentBodies:
    """Bodies by key. The least recently used ones are dropped above `max_bytes` in all.

    A body is only what was written. Whether the object is still there must be asked of the store, with the ETag.
    """

    def __init__(self, *, max_bytes: int = MAX_BYTES, max_body_bytes: int = MAX_BODY_BYTES) -> None:
        self._max_bytes = max_bytes
        self._max_body_bytes = max_body_bytes
        self._bodies: OrderedDict[str, RecentBody] = OrderedDict()
        self._size = 0

    @property
    def size(self) -> int:
        """Bytes of all bodies together."""
        return self._size

    def add(self, key: str, recent: RecentBody) -> None:
        """Keep a body, unless it is larger than `max_body_bytes`."""
        self.discard(key)
        if len(recent.body) > self._max_body_bytes:
            return
        self._bodies[key] = recent
        self._size += len(recent.body)
        while self._size > self._max_bytes:
            self.discard(next(iter(self._bodies)))

    def get(self, key: str, expected: StoredObject) -> RecentBody | None:
        """The body that was stored under this key, if it has this size and hash."""
        recent = self._bodies.get(key)
        if recent is None or recent.stored != expected:
            return None
        self._bodies.move_to_end(key)
        return recent

    def discard(self, key: str) -> None:
        """Forget a body, if it is here."""
        recent = self._bodies.pop(key, None)
        if recent is not None:
            self._size -= len(recent.body)

    def clear(self) -> None:
        """Forget all bodies."""
        self._bodies.clear()
        self._size = 0
