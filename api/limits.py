"""How much work may come in: of all tenants together, and of each.

    one tenant sends too fast          429, by a token bucket of this process
    one tenant has too many open jobs  429; one that ended is open until the projector has seen it
    all queues together are too long   503: admission is closed

The last two are counted in the database once a second, and before anything is let in; what this process has let in
since is added. Several processes may so let in a second's worth more than the limit says.
"""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, nullcontext

import msgspec

from api.errors import ApiError
from eventstore.database import Database

_FRESH_S = 1.0
_STALE_S = 2.0
_FULL_RETRY_S = 5
_MOST_BUCKETS = 10_000
# What the orchestrator has not reacted to yet, be it that it never ran, will become a command, or is one's end.
_WAITING = """
select (select coalesce(sum(commands), 0) from eventstore.queue_lengths()) + (
    select coalesce(sum((
        select coalesce(max(e.position), 0) from eventstore.events e where e.partition = p
    ) - coalesce(s.position, 0)), 0)
    from eventstore.log
    cross join generate_series(0, partitions - 1) as p
    left join eventstore.standings s on s.subscription = 'orchestrator' and s.partition = p) as waiting
"""
# Those that the projector has seen, and those made or retried that it has not come to. No further than the limit:
# beyond it the number says nothing more.
_OPEN = """
select (
    select count(*) from (
        select from readmodel.jobs where tenant = $1 and status in ('queued', 'running') limit $2) as seen
) + (
    select count(*) from (
        select distinct e.stream_id from eventstore.log
        cross join generate_series(0, partitions - 1) as p
        left join eventstore.standings s on s.subscription = 'readmodel' and s.partition = p
        -- By the key, and the newest thousand events: a projector that is stopped must not make this a scan of the log.
        cross join lateral (
            select e.tenant, e.code, e.stream_id from eventstore.events e
            where e.partition = p and e.position > coalesce(s.position, 0) order by e.position desc limit 1000
        ) as e
        where e.tenant = $1 and e.code in ('job.created', 'job.retry_requested') limit $2) as unseen
) as waiting
"""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What can be set; None sets no limit. rate: requests a second of one tenant."""

    queued: int | None = None
    tenant_queued: int | None = None
    rate: float | None = None


class Count:
    """A number that the database tells, with what was let in here that it can't know of yet."""

    def __init__(self, ask: Callable[[], Awaitable[int]]) -> None:
        self._ask = ask
        self._asking: asyncio.Task[None] | None = None
        self._asked_at = -math.inf
        self._told = 0
        self._open = 0
        self._written = 0

    @property
    def value(self) -> int:
        """The number, as far as it is known."""
        return self._told + self._open + self._written

    async def refresh(self) -> None:
        """Ask anew when the number is a second old; wait for the answer only when it is two, or was never told."""
        age = time.monotonic() - self._asked_at
        if age >= _FRESH_S and (self._asking is None or self._asking.done()):
            self._asking = asyncio.create_task(self._measure(), name="count")
            self._asking.add_done_callback(_retrieve)
        if age >= _STALE_S and self._asking is not None:
            await asyncio.shield(self._asking)

    @contextmanager
    def one_more(self) -> Iterator[None]:
        """Counts one that is being written, and then for as long as the newest answer may not hold it."""
        self._open += 1
        try:
            yield
        finally:
            self._open -= 1
            self._written += 1

    async def _measure(self) -> None:
        asked_at, written = time.monotonic(), self._written
        self._told = await self._ask()
        self._asked_at = asked_at
        self._written -= written


def _retrieve(asking: asyncio.Task[None]) -> None:
    if not asking.cancelled():
        asking.exception()  # whoever waits gets it; who doesn't needs none, and asks again


class Bucket:
    """A token bucket: as many requests at once as come in two seconds, then so many a second."""

    def __init__(self, rate: float, now: float) -> None:
        self._rate = rate
        self._size = max(1.0, 2 * rate)
        self._tokens = self._size
        self._at = now

    def acquire(self, now: float) -> float:
        """Take a token; the seconds until there is one, 0 if there was."""
        self._tokens = min(self._size, self._tokens + (now - self._at) * self._rate)
        self._at = now
        if self._tokens < 1:
            return (1 - self._tokens) / self._rate
        self._tokens -= 1
        return 0.0


class Admission:
    """The limits of one process. database: asked for what is open; it may raise `DatabaseUnavailable`."""

    def __init__(self, database: Database, limits: Limits) -> None:
        self._database = database
        self._limits = limits
        self._queued = Count(self._waiting)
        self._tenants: dict[str, Count] = {}
        self._buckets: dict[str, Bucket] = {}

    def pace(self, tenant: str) -> None:
        """Count a request of a tenant; raise 429 when it comes too soon."""
        rate = self._limits.rate
        if rate is None:
            return
        now = time.monotonic()
        if tenant not in self._buckets and len(self._buckets) >= _MOST_BUCKETS:
            self._buckets.clear()
        wait_s = self._buckets.setdefault(tenant, Bucket(rate, now)).acquire(now)
        if wait_s > 0:
            raise _limited(f"More than {rate:g} requests a second came from this tenant; slow down.", wait_s)

    @asynccontextmanager
    async def slot(self, tenant: str) -> AsyncIterator[None]:
        """A place for a tenant's new job, which is written meanwhile; raise 429 or 503 if there is none."""
        mine, most = None, self._limits.tenant_queued
        if most is not None:
            mine = self._tenants.setdefault(tenant, Count(lambda: self._open(tenant, most)))
            await mine.refresh()
        if self._limits.queued is not None:
            await self._queued.refresh()
        # From here on nothing is awaited: no other may take the place meanwhile.
        if mine is not None and most is not None and mine.value >= most:
            raise _limited(f"This tenant has {most} open jobs, as many as it may; wait for some to end.", 1)
        if self._limits.queued is not None and self._queued.value >= self._limits.queued:
            raise ApiError(
                "infra_unavailable",
                f"{self._limits.queued} commands are waiting, as many as may; no new job is accepted now.",
                {"reason": "admission is closed", "limit": self._limits.queued},
                {"Retry-After": str(_FULL_RETRY_S)},
            )
        with self._queued.one_more(), nullcontext() if mine is None else mine.one_more():
            yield

    async def _waiting(self) -> int:
        return int((await self._database.read(_WAITING))[0]["waiting"])

    async def _open(self, tenant: str, most: int) -> int:
        return int((await self._database.read(_OPEN, tenant, most))[0]["waiting"])


def _limited(message: str, wait_s: float) -> ApiError:
    return ApiError("rate_limited", message, headers={"Retry-After": str(max(1, math.ceil(wait_s)))})
