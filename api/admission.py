"""Limits on the work that is accepted: of one tenant, and of all together.

    a tenant sends requests too fast     429, by a token bucket of this process
    a tenant has too many open jobs      429; an ended job counts until the projector has seen its end
    too many commands wait in the queues 503

The last two numbers are read from the database once a second and before the first request. Jobs that this process has
accepted since the last read are added. Several processes together may therefore exceed a limit by one second of work.
"""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, nullcontext

import msgspec

from api.errors import ApiError
from eventstore.database import Database
from projections.admission_queries import count_open_jobs, count_waiting_commands

_COUNT_REFRESH_AFTER_S = 1.0
_COUNT_STALE_AFTER_S = 2.0
_MAX_BUCKETS = 10_000
_RETRY_AFTER_SHARE = 0.1
_UNKNOWN_RETRY_AFTER_S, _MAX_RETRY_AFTER_S = 5.0, 60.0


class AdmissionLimits(msgspec.Struct, frozen=True, kw_only=True):
    """The settings; None sets no limit. rate: requests a second of one tenant."""

    queued: int | None = None
    tenant_queued: int | None = None
    rate: float | None = None


class CachedCount:
    """A number from the database, plus what this process has added since it was read."""

    def __init__(self, read_count: Callable[[], Awaitable[int]]) -> None:
        self._read = read_count
        self._reading: asyncio.Task[None] | None = None
        self._read_at = -math.inf
        self._last = 0
        self._open = 0
        self._written = 0
        self._falls_per_s: float | None = None

    @property
    def estimate(self) -> int:
        """The current estimate."""
        return self._last + self._open + self._written

    def fall_time_s(self, amount: float) -> float:
        """How long it takes at present until the number has fallen by an amount, if nothing is added."""
        rate = self._falls_per_s
        if rate is None:
            return _UNKNOWN_RETRY_AFTER_S
        return min(_MAX_RETRY_AFTER_S, amount / rate) if rate > 0 else _MAX_RETRY_AFTER_S

    @property
    def stale(self) -> bool:
        """Whether the last read is too old to decide by."""
        return time.monotonic() - self._read_at >= _COUNT_STALE_AFTER_S

    def start_refresh(self) -> None:
        """Start a new read if the last one is a second old."""
        age = time.monotonic() - self._read_at
        if age >= _COUNT_REFRESH_AFTER_S and (self._reading is None or self._reading.done()):
            self._reading = asyncio.create_task(self._read_and_store(), name="count")
            self._reading.add_done_callback(_retrieve_task_error)

    async def refresh_if_stale(self) -> None:
        """Start a new read if the last one is a second old; await it only if the last one is two seconds old."""
        self.start_refresh()
        if self.stale and self._reading is not None:
            await asyncio.shield(self._reading)

    @contextmanager
    def count_one_more(self) -> Iterator[None]:
        """Add one during the block, and afterwards until a read that began after the block has ended."""
        self._open += 1
        try:
            yield
        finally:
            self._open -= 1
            self._written += 1

    async def _read_and_store(self) -> None:
        read_at, written = time.monotonic(), self._written
        found = await self._read()
        # Others' additions are not known: they make it seem to fall more slowly.
        fall, seconds = self._last + written - found, read_at - self._read_at
        if math.isfinite(seconds) and seconds > 0:
            self._falls_per_s = max(0.0, fall / seconds)
        self._last, self._read_at = found, read_at
        self._written -= written


def _retrieve_task_error(task: asyncio.Task[None]) -> None:
    """Mark the task's error as retrieved: it is raised in `refresh_if_stale` if anything awaits the task."""
    if not task.cancelled():
        task.exception()


class TokenBucket:
    """A token bucket. rate: tokens a second; two seconds' worth are kept, at least one."""

    def __init__(self, rate: float, now: float) -> None:
        self._rate = rate
        self._size = max(1.0, 2 * rate)
        self._tokens = self._size
        self._at = now

    def acquire(self, now: float) -> float:
        """Take a token and return 0, or return the seconds until there is one."""
        self._tokens = min(self._size, self._tokens + (now - self._at) * self._rate)
        self._at = now
        if self._tokens < 1:
            return (1 - self._tokens) / self._rate
        self._tokens -= 1
        return 0.0


class AdmissionControl:
    """Applies the limits in one process. Methods may raise `DatabaseUnavailable`."""

    def __init__(self, database: Database, limits: AdmissionLimits) -> None:
        self._database = database
        self._limits = limits
        self._queued = CachedCount(lambda: count_waiting_commands(database))
        self._tenants: dict[str, CachedCount] = {}
        self._buckets: dict[str, TokenBucket] = {}

    def count_request(self, tenant: str) -> None:
        """Count a request of a tenant; raise 429 if it exceeds the rate."""
        rate = self._limits.rate
        if rate is None:
            return
        now = time.monotonic()
        if tenant not in self._buckets and len(self._buckets) >= _MAX_BUCKETS:
            self._buckets.clear()
        wait_s = self._buckets.setdefault(tenant, TokenBucket(rate, now)).acquire(now)
        if wait_s > 0:
            raise _rate_limited_error(f"More than {rate:g} requests a second came from this tenant; slow down.", wait_s)

    def current_refusal(self) -> ApiError | None:
        """The 503 of every request for a new job, if too many commands wait; None if that is not so, or not known."""
        if self._limits.queued is None:
            return None
        self._queued.start_refresh()
        return None if self._queued.stale else self._queue_refusal()

    @asynccontextmanager
    async def reserve_job(self, tenant: str) -> AsyncIterator[None]:
        """Reserve room for a tenant's new job, which the block writes; raise 429 or 503 if there is none."""
        own = await self._refreshed_open_jobs_count(tenant)
        if self._limits.queued is not None:
            await self._queued.refresh_if_stale()
        # No await between the checks and the reservation: a concurrent request could take the room.
        self._check_limits(own)
        with self._queued.count_one_more(), nullcontext() if own is None else own.count_one_more():
            yield

    async def _refreshed_open_jobs_count(self, tenant: str) -> CachedCount | None:
        limit = self._limits.tenant_queued
        if limit is None:
            return None
        count = self._tenants.setdefault(tenant, CachedCount(lambda: count_open_jobs(self._database, tenant, limit)))
        await count.refresh_if_stale()
        return count

    def _check_limits(self, own: CachedCount | None) -> None:
        own_most = self._limits.tenant_queued
        if own is not None and own_most is not None and own.estimate >= own_most:
            raise _rate_limited_error(
                f"This tenant has {own_most} open jobs, as many as it may; wait for some to end.", 1
            )
        refusal = self._queue_refusal()
        if refusal is not None:
            raise refusal

    def _queue_refusal(self) -> ApiError | None:
        queued = self._limits.queued
        if queued is None or self._queued.estimate < queued:
            return None
        # By then there is room for many, not only for the first to come.
        wait_s = self._queued.fall_time_s(_RETRY_AFTER_SHARE * queued)
        return ApiError(
            "infra_unavailable",
            f"{queued} commands are waiting, as many as may; no new job is accepted now.",
            {"reason": "admission is closed", "limit": queued},
            {"Retry-After": _whole_seconds(wait_s)},
        )


def _rate_limited_error(message: str, wait_s: float) -> ApiError:
    return ApiError("rate_limited", message, headers={"Retry-After": _whole_seconds(wait_s)})


def _whole_seconds(wait_s: float) -> str:
    return str(max(1, math.ceil(wait_s)))
