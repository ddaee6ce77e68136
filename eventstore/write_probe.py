"""Tests whether a commit would succeed."""

import asyncio
import time

from eventstore.database import Database
from eventstore.errors import DatabaseUnavailable
from eventstore.metrics import DATABASE_WRITABLE

_MIN_TRY_INTERVAL_S = 2.0
_CHECK_TIMEOUT_S = 2.5
_COMMIT_TIMEOUT_S = 10.0


class WriteProbe:
    """Tries a commit without data when asked, at most once in two seconds.

    A server that is read-only, that has no room left, or whose synchronous standby is away still answers reads.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._trying: asyncio.Task[None] | None = None
        self._tried_at = 0.0

    async def check(self) -> None:
        """Raise `EventStoreError` with the reason, unless the newest try succeeded."""
        await self.refresh()
        if self._trying is None or not self._trying.done():
            raise DatabaseUnavailable(f"a commit did not return within {_CHECK_TIMEOUT_S:g} s")
        self._trying.result()

    async def refresh(self) -> None:
        """Try again, unless the last try is less than two seconds old; takes at most two and a half seconds."""
        stale = time.monotonic() - self._tried_at >= _MIN_TRY_INTERVAL_S
        if self._trying is None or (self._trying.done() and stale):
            self._trying = asyncio.create_task(self._try_commit(), name="write probe")
        await asyncio.wait({self._trying}, timeout=_CHECK_TIMEOUT_S)
        succeeded = self._trying.done() and self._trying.exception() is None
        DATABASE_WRITABLE.set(succeeded)

    async def _try_commit(self) -> None:
        try:
            await self._database.execute_once("select eventstore.probe_writes()", seconds=_COMMIT_TIMEOUT_S)
        finally:
            self._tried_at = time.monotonic()
