"""Prometheus metrics of the event store: time of commits, length of queues, lag of subscriptions."""

import asyncio
import math
import time
from collections.abc import Mapping

import structlog
from prometheus_client import Gauge, Histogram

from eventstore.database import Database

_MIN_REFRESH_INTERVAL_S = 1.0
_REFRESH_TIMEOUT_S = 2.0
_log = structlog.get_logger(__name__)

APPEND_SECONDS = Histogram(
    "df_append_seconds",
    "How long a commit to the log took.",
    buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)
QUEUE_DEPTH = Gauge("df_queue_depth", "Commands that wait, are deferred or are claimed.", ["queue"])
QUEUE_OLDEST_AGE_SECONDS = Gauge(
    "df_queue_oldest_age_seconds", "Age of the oldest of these commands; 0 if there is none.", ["queue"]
)
LAG_EVENTS = Gauge("df_projection_lag_events", "Events that the subscription has not handled.", ["subscription"])
LAG_SECONDS = Gauge(
    "df_projection_lag_seconds", "Age of the oldest of these events; 0 if there is none.", ["subscription"]
)
SUBSCRIPTION_FAILED = Gauge(
    "df_subscription_failed",
    "1 while a partition of a subscription that this process runs is stalled, else 0.",
    ["subscription"],
)
DATABASE_WRITABLE = Gauge(
    "df_database_writable", "1 if the last test commit succeeded, else 0; a scrape runs one at most every two seconds."
)

_QUEUE_METRICS_SQL = "select queue_name, queue_length, coalesce(oldest_msg_age_sec, 0) as age from pgmq.metrics_all()"
# Positions have no gaps, so the distance to the head is the number of events, and the oldest is the next.
_SUBSCRIPTION_LAGS_SQL = """
select c.subscription,
    sum(head.position - c.position)::bigint as events,
    coalesce(extract(epoch from clock_timestamp() - min(next.recorded_at)), 0)::float8 as seconds
from eventstore.standings c
cross join lateral (
    select coalesce(max(e.position), 0) as position from eventstore.events e where e.partition = c.partition
) head
left join lateral (
    select e.recorded_at from eventstore.events e
    where e.partition = c.partition and e.position > c.position order by e.position limit 1
) next on true
group by c.subscription
"""


class BacklogGauges:
    """Keeps the gauges that only the database can tell: of the queues, and of every subscription's lag.

    count_queries: gauges of the application's, each with the query of its one value, in the column `count`.
    """

    def __init__(self, database: Database, count_queries: Mapping[Gauge, str] = {}) -> None:
        self._database = database
        self._count_queries = count_queries
        self._reading: asyncio.Task[None] | None = None
        self._read_at = 0.0

    async def refresh(self) -> None:
        """Read the gauges anew, unless that was a second ago; takes two seconds at most.

        What is not known by then is left out: an old figure would look like a new one.
        """
        stale = time.monotonic() - self._read_at >= _MIN_REFRESH_INTERVAL_S
        if self._reading is None or (self._reading.done() and stale):
            self._reading = asyncio.create_task(self._read_gauges(), name="backlog")
        # Not cancelled when it takes longer: the connection would have to wait for the server's answer all the same.
        await asyncio.wait({self._reading}, timeout=_REFRESH_TIMEOUT_S)
        if not self._reading.done():
            _clear_gauges()

    async def _read_gauges(self) -> None:
        try:
            count_rows = {gauge: await self._database.read(query) for gauge, query in self._count_queries.items()}
            queues = await self._database.read(_QUEUE_METRICS_SQL)
            lags = await self._database.read(_SUBSCRIPTION_LAGS_SQL)
        except Exception as error:  # noqa: BLE001  # whatever keeps it away, the other metrics are answered
            _log.warning("queues and lags are left out of the metrics", error=str(error))
            _clear_gauges()
            for gauge in self._count_queries:
                gauge.set(math.nan)
        else:
            _clear_gauges()
            for gauge, [row] in count_rows.items():
                gauge.set(row["count"])
            for row in queues:
                QUEUE_DEPTH.labels(row["queue_name"]).set(row["queue_length"])
                QUEUE_OLDEST_AGE_SECONDS.labels(row["queue_name"]).set(row["age"])
            for row in lags:
                LAG_EVENTS.labels(row["subscription"]).set(row["events"])
                LAG_SECONDS.labels(row["subscription"]).set(row["seconds"])
        self._read_at = time.monotonic()


def _clear_gauges() -> None:
    for gauge in (QUEUE_DEPTH, QUEUE_OLDEST_AGE_SECONDS, LAG_EVENTS, LAG_SECONDS):
        gauge.clear()
