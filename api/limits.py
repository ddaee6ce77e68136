"""How much work may come in: of all tenants together, and of each.

    one tenant sends too fast          429, by a token bucket of this process
    one tenant has too many open jobs  429, as far as the projector has come
    all queues together are too long   503: admission is closed

The last two are counted in the database once a second at most, and what this process has let in since is added; several
processes may so let in a second's worth more than the limit says.
"""

import math
import time
from collections.abc import Awaitable, Callable

import msgspec

from api.errors import ApiError
from eventstore.database import Database

_FRESH_S = 1.0
_FULL_RETRY_S = 5
_MOST_BUCKETS = 10_000
# What the orchestrator has not reacted to yet will become a command, or is one's end.
_WAITING = """
select (select coalesce(sum(commands), 0) from eventstore.queue_lengths()) + (
    select coalesce(sum((
        select coalesce(max(e.position), 0) from eventstore.events e where e.partition = s.partition
    ) - s.position), 0)
    from eventstore.standings s where s.subscription = 'orchestrator') as waiting
"""
# No further than the limit: beyond it the number says nothing more.
_OPEN = """
select count(*) as waiting from (
    select from readmodel.jobs where tenant = $1 and status in ('queued', 'running') limit $2) as open
"""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What can be set; None sets no limit. rate: requests a second of one tenant."""

    queued: int | None = None
    tenant_queued: int | None = None
    rate: float | None = None


class Count:
    """A number that the database tells, with what was added here since it was asked."""

    def __init__(self, ask: Callable[[], Awaitable[int]]) -> None:
        self._ask = ask
        self._count = 0
        self._asked_at = -math.inf

    async def now(self) -> int:
        """The number; asked again when it is old."""
        now = time.monotonic()
        if now - self._asked_at >= _FRESH_S:
            self._asked_at = now  # before the answer, so that one asks and the others go on meanwhile
            self._count = await self._ask()
        return self._count

    def add(self) -> None:
        """One more."""
        self._count += 1


class Bucket:
    """A token bucket: as many requests at once as come in two seconds, then so many a second."""

    def __init__(self, rate: float, now: float) -> None:
        self._rate = rate
        self._size = max(1.0, 2 * rate)
        self._tokens = self._size
        self._at = now

    def take(self, now: float) -> float:
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
        wait_s = self._buckets.setdefault(tenant, Bucket(rate, now)).take(now)
        if wait_s > 0:
            raise _limited(f"More than {rate:g} requests a second came from this tenant; slow down.", wait_s)

    async def admit(self, tenant: str) -> None:
        """Raise 429 or 503 if a tenant's new job can't be let in; otherwise count it as let in."""
        counts: list[Count] = []
        most = self._limits.tenant_queued
        if most is not None:
            mine = self._tenants.setdefault(tenant, Count(lambda: self._open(tenant, most)))
            if await mine.now() >= most:
                raise _limited(f"This tenant has {most} open jobs, as many as it may; wait for some to end.", 1)
            counts.append(mine)
        if self._limits.queued is not None:
            if await self._queued.now() >= self._limits.queued:
                raise ApiError(
                    "infra_unavailable",
                    f"{self._limits.queued} commands are waiting, as many as may; no new job is accepted now.",
                    {"reason": "admission is closed", "limit": self._limits.queued},
                    {"Retry-After": str(_FULL_RETRY_S)},
                )
            counts.append(self._queued)
        for count in counts:
            count.add()

    async def _waiting(self) -> int:
        return int((await self._database.read(_WAITING))[0]["waiting"])

    async def _open(self, tenant: str, most: int) -> int:
        return int((await self._database.read(_OPEN, tenant, most))[0]["waiting"])


def _limited(message: str, wait_s: float) -> ApiError:
    return ApiError("rate_limited", message, headers={"Retry-After": str(max(1, math.ceil(wait_s)))})
