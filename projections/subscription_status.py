"""Checkpoints of subscriptions, and their lag behind the log."""

from datetime import datetime

import msgspec

from eventstore.database import Database

# The lag is the age of the first event after the checkpoint, by the database's clock. Lateral subqueries, since tables
# as small as the subscriptions' are never analysed: a join would be planned as a scan of the whole log.
_SUBSCRIPTION_STATUSES_SQL = """
select s.subscription as projection, s.partition, s.position, coalesce(h.position, 0) as head,
    extract(epoch from clock_timestamp() - n.recorded_at)::float8 as lag_s, s.moved_at, b.paused_at
from eventstore.standings s
join eventstore.subscriptions b using (subscription)
left join lateral (
    select position from eventstore.events e where e.partition = s.partition order by position desc limit 1
) as h on true
left join lateral (
    select recorded_at from eventstore.events e
    where e.partition = s.partition and e.position > s.position order by e.position limit 1
) as n on true
order by s.subscription, s.partition
"""


class SubscriptionStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One partition of a subscription.

    position: its checkpoint. head: the position of the newest event. lag_s: the age of the first event after the
    checkpoint, in seconds; None if there is none. moved_at: when the checkpoint last moved. paused_at: when an operator
    paused it.
    """

    projection: str
    partition: int
    position: int
    head: int
    lag_s: float | None
    moved_at: datetime
    paused_at: datetime | None = None

    @property
    def lag(self) -> int:
        """The number of events after the checkpoint."""
        return self.head - self.position


async def read_subscription_statuses(database: Database) -> list[SubscriptionStatus]:
    """The status of every subscription in every partition. Raises `DatabaseUnavailable`."""
    return [SubscriptionStatus(**row) for row in await database.read(_SUBSCRIPTION_STATUSES_SQL)]
