"""Reads events with all that their proof needs, and trusts none of the columns."""

from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime
from uuid import UUID

from eventstore.database import Database, Row
from eventstore.errors import SchemaMissing
from eventstore.integrity.verifier import AuditEvent, LogIdentity
from eventstore.log import EVENT_COLUMNS

_PAGE_SIZE = 1000
_MIN_POSITION = -(2**63)

# The neighbours are looked up by their keys, one by one: a page costs the same anywhere.
_AUDIT_EVENTS_SQL = """
select e.*, v.hash as previous_hash, p.chain as previous_chain
from (select {columns}, private_salt from eventstore.events where {condition}) as e
left join lateral (
    select hash from eventstore.events where stream_id = e.stream_id and version = e.version - 1
    order by position limit 1
) as v on true
left join lateral (
    select chain from eventstore.events where partition = e.partition and position = e.position - 1 limit 1
) as p on true
order by {order}
"""
_STREAM_SQL = _AUDIT_EVENTS_SQL.format(
    columns=EVENT_COLUMNS,
    condition="stream_id = $1 and version > $2::bigint order by version limit $3",
    order="e.version",
)
_PARTITION_PAGE_SQL = _AUDIT_EVENTS_SQL.format(
    columns=EVENT_COLUMNS, condition="partition = $1 and position > $2 order by position limit $3", order="e.position"
)
# Rows may lie in partitions that the log does not have, if somebody put them there.
_PARTITIONS_SQL = """
with recursive found as (
    (select partition from eventstore.events order by partition limit 1)
    union all
    select (select e.partition from eventstore.events e where e.partition > f.partition order by e.partition limit 1)
    from found f where f.partition is not null
)
select partition from found where partition is not null
"""
_CHAIN_HASHES_SQL = """
select partition, position, chain from unnest($1::smallint[], $2::bigint[]) as c (partition, position)
join eventstore.events using (partition, position)
"""
# recorded_at never runs backwards within a partition, but has no index: the key is searched by halves.
_POSITION_BEFORE_SQL = """
with recursive halves as (
    select 0::bigint as low, coalesce((select max(position) from eventstore.events where partition = $1), 0) as high
    union all
    select case when m.earlier then h.middle else h.low end, case when m.earlier then h.high else h.middle - 1 end
    from (select low, high, (low + high + 1) / 2 as middle from halves) as h
    cross join lateral (
        select coalesce((
            select recorded_at < $2 from eventstore.events
            where partition = $1 and position <= h.middle order by position desc limit 1), true) as earlier
    ) as m
    where h.low < h.high
)
select low as position from halves where low >= high
"""


class AuditReader:
    """Reads the rows of a log. Every method may raise `DatabaseUnavailable`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def read_log_identity(self) -> LogIdentity:
        """Which log this is."""
        rows = await self._database.read("select log_id, partitions from eventstore.log")
        if not rows:
            raise SchemaMissing("eventstore.log is empty; run `dreamforge schema install`")
        return LogIdentity(log_id=rows[0]["log_id"], partitions=rows[0]["partitions"])

    async def read_stream(
        self, stream: UUID, *, after: int = _MIN_POSITION, limit: int | None = None
    ) -> list[AuditEvent]:
        """The history of one stream after a version, oldest first; empty if there is none."""
        return _audit_events(await self._database.read(_STREAM_SQL, stream, after, limit))

    async def nonempty_partitions(self) -> list[int]:
        """The partitions that hold any event, the lowest first."""
        return [row["partition"] for row in await self._database.read(_PARTITIONS_SQL)]

    async def chain_hashes(self, positions: Mapping[int, int]) -> dict[tuple[int, int], bytes]:
        """The chain at a position of each partition, by partition and position; nothing where there is no event."""
        rows = await self._database.read(_CHAIN_HASHES_SQL, list(positions), list(positions.values()))
        return {(row["partition"], row["position"]): row["chain"] for row in rows}

    async def position_before(self, partition: int, since: datetime) -> int:
        """The position after which a partition's events were recorded at a moment or later."""
        rows = await self._database.read(_POSITION_BEFORE_SQL, partition, since)
        return int(rows[0]["position"])

    async def read_pages(self, partition: int, *, after: int = _MIN_POSITION) -> AsyncIterator[list[AuditEvent]]:
        """The events of a partition after a position, a page at a time, up to those that come while it is read."""
        while True:
            page = _audit_events(await self._database.read(_PARTITION_PAGE_SQL, partition, after, _PAGE_SIZE))
            if page:
                yield page
            if len(page) < _PAGE_SIZE:
                return
            after = page[-1].position


def _audit_events(rows: Sequence[Row]) -> list[AuditEvent]:
    return [AuditEvent(**row) for row in rows]
