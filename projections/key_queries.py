"""Reads of the API keys. There are few, so each process caches all of them for two seconds."""

import asyncio
import hmac
import time
from collections.abc import Mapping
from uuid import UUID

from eventstore.errors import EventStoreError
from eventstore.log import Log
from orchestrator.service import fold_or_none
from projections.keys import KeyView, evolve_key, key_text_digest, parse_key_id


class ApiKeys:
    """The keys of a log. An invented key costs no read of the database.

    Every method may raise `EventStoreError`. Methods that look up one key use the cache when a read fails.
    max_age_s: of the cache, and so the time for which a revoked key may still work.
    """

    def __init__(self, log: Log, *, max_age_s: float = 2.0) -> None:
        self._log = log
        self._max_age_s = max_age_s
        self._cached: Mapping[UUID, KeyView] | None = None
        self._read_at = 0.0
        self._refresh_task: asyncio.Task[Mapping[UUID, KeyView]] | None = None

    async def list_keys(self) -> list[KeyView]:
        """Every key, not from the cache, by tenant and creation time."""
        keys = await self._read_all_keys()
        return sorted(keys.values(), key=lambda key: (key.tenant, key.created_at, key.key_id))

    async def authenticate(self, key_text: str) -> KeyView | None:
        """The active key with this text, else None. Digests are compared in constant time."""
        key_id = parse_key_id(key_text)
        key = None if key_id is None else await self.active_key(key_id)
        if key is None or not hmac.compare_digest(key.digest, key_text_digest(key_text)):
            return None
        return key

    async def active_key(self, key_id: UUID) -> KeyView | None:
        """The key with this id, unless it was revoked."""
        key = (await self._cached_or_refreshed_keys()).get(key_id)
        return key if key is not None and key.is_active else None

    async def _cached_or_refreshed_keys(self) -> Mapping[UUID, KeyView]:
        if self._cached is not None and time.monotonic() - self._read_at < self._max_age_s:
            return self._cached
        # Concurrent callers wait for the same read: after an hour without requests the cache is an hour old.
        if self._refresh_task is None:
            self._refresh_task = asyncio.create_task(self._refresh_cache())
        return await asyncio.shield(self._refresh_task)

    async def _refresh_cache(self) -> Mapping[UUID, KeyView]:
        try:
            self._cached = await self._read_all_keys()
        except EventStoreError:
            if self._cached is None:
                raise
        finally:
            self._read_at = time.monotonic()
            self._refresh_task = None
        return self._cached

    async def _read_all_keys(self) -> dict[UUID, KeyView]:
        histories = await self._log.read_category("key")
        keys = {key_id: fold_or_none(evolve_key, history) for key_id, history in histories.items()}
        return {key_id: key for key_id, key in keys.items() if key is not None}
