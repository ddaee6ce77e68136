"""Reads of the API keys. There are few, so a process holds them all, and asks for them again every other second."""

import asyncio
import hmac
import time
from collections.abc import Mapping, Sequence
from uuid import UUID

import structlog

from eventstore.errors import EventStoreError
from eventstore.events import RecordedEvent
from eventstore.log import Log
from orchestrator import codec
from projections.keys import KeyView, digest, named_id, view

_log = structlog.get_logger(__name__)


class Keys:
    """The keys of a log. A key that was made up costs no read of the database.

    Every method may raise `EventStoreError`; but those that look up one key take them as they were last read, if that
    ever went well. fresh_s: how old what was read may be, and so how long a revoked key may go on opening doors.
    """

    def __init__(self, log: Log, *, fresh_s: float = 2.0) -> None:
        self._log = log
        self._fresh_s = fresh_s
        self._known: Mapping[UUID, KeyView] | None = None
        self._read_at = 0.0
        self._reading: asyncio.Task[Mapping[UUID, KeyView]] | None = None

    async def all(self) -> list[KeyView]:
        """Every key, as of now, by tenant and age."""
        found = await self._read()
        return sorted(found.values(), key=lambda key: (key.tenant, key.created_at, key.key_id))

    async def opened_by(self, text: str) -> KeyView | None:
        """The key that a text is, unless it was revoked; compared in constant time."""
        key_id = named_id(text)
        found = None if key_id is None else await self.active(key_id)
        if found is None or not hmac.compare_digest(found.digest, digest(text)):
            return None
        return found

    async def active(self, key_id: UUID) -> KeyView | None:
        """A key by its id, unless it was revoked."""
        found = (await self._fresh()).get(key_id)
        return found if found is not None and found.active else None

    async def _fresh(self) -> Mapping[UUID, KeyView]:
        if self._known is not None and time.monotonic() - self._read_at < self._fresh_s:
            return self._known
        # All who come meanwhile wait for the one read: after a quiet hour what is known is an hour old.
        if self._reading is None:
            self._reading = asyncio.create_task(self._refresh())
        return await asyncio.shield(self._reading)

    async def _refresh(self) -> Mapping[UUID, KeyView]:
        try:
            self._known = await self._read()
        except EventStoreError:
            if self._known is None:
                raise
        finally:
            self._read_at = time.monotonic()
            self._reading = None
        return self._known

    async def _read(self) -> dict[UUID, KeyView]:
        histories = await self._log.category("key")
        seen = {key_id: _readable(history) for key_id, history in histories.items()}
        return {key_id: key for key_id, key in seen.items() if key is not None}


def _readable(history: Sequence[RecordedEvent]) -> KeyView | None:
    """A key; None for one whose history can't be read: it opens nothing."""
    try:
        return view(map(codec.decode_event, history))
    except Exception as error:  # noqa: BLE001  # a fold may break in any way on what it was not written for
        _log.warning("a key can't be read", key_id=str(history[0].stream_id), error=str(error))
        return None
