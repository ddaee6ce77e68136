"""The log: `Log.commit`, the only function that writes, and the reads."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Literal
from uuid import UUID

import msgspec

from eventstore.database import Database, Row
from eventstore.errors import LogDamaged, SchemaMissing
from eventstore.events import NewEvent, RecordedEvent
from eventstore.metrics import APPEND_SECONDS
from eventstore.schema import RELEASE

Verdict = Literal["accepted", "already_committed", "conflict", "rejected"]
DEFAULT_TENANT = "default"
OPERATOR_TENANT = "_operator"
"""The tenant of events about the service itself. No client can belong to it."""


class Append(msgspec.Struct, frozen=True, kw_only=True):
    """Events to append to one stream, which must be at version `expected` (0: it must not exist)."""

    stream: UUID
    expected: int
    events: tuple[NewEvent, ...]
    category: str
    tenant: str = DEFAULT_TENANT


class Send(msgspec.Struct, frozen=True, kw_only=True):
    """A command for a queue, invisible for `delay` seconds. message: what is encoded as JSON."""

    stream: UUID
    queue: str
    message: msgspec.Struct
    delay: float = 0.0


class Ack(msgspec.Struct, frozen=True, kw_only=True):
    """Delete a message; `read_ct` is its owner's token, without which nothing happens."""

    stream: UUID
    queue: str
    msg_id: int
    read_ct: int


class Defer(Ack, frozen=True, kw_only=True):
    """Give a message back, to be shown again after `delay` seconds."""

    delay: float


class CheckpointMove(msgspec.Struct, frozen=True, kw_only=True):
    """Moves a subscription's checkpoint, if that is still at `start`."""

    subscription: str
    partition: int
    start: int = msgspec.field(name="from")
    end: int = msgspec.field(name="to")


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """What one call of `Log.commit` writes; a stream at most once."""

    appends: Sequence[Append] = ()
    sends: Sequence[Send] = ()
    acks: Sequence[Ack] = ()
    defers: Sequence[Defer] = ()
    moves: Sequence[CheckpointMove] = ()


class AppendOutcome(msgspec.Struct, frozen=True):
    """The outcome of one append. version: the stream's newest version after the call.

    accepted: the events were appended. already_committed: an earlier call appended these very events. conflict: the
    stream is not at the expected version. rejected: another part of the same partition's batch failed.
    """

    verdict: Verdict
    version: int

    @property
    def committed(self) -> bool:
        """Whether the log holds the events, by this call or by an earlier one whose answer was lost."""
        return self.verdict in {"accepted", "already_committed"}


class CheckpointMoveOutcome(msgspec.Struct, frozen=True):
    """The outcome of a checkpoint's move. position: the checkpoint after the call."""

    verdict: Verdict
    position: int


class PartitionEnd(msgspec.Struct, frozen=True):
    """The newest event of a partition, and its chain hash; position 0 and no hash where there is none."""

    position: int
    chain: bytes


class LogHead(msgspec.Struct, frozen=True):
    """The identity of a log, and where each partition ends."""

    log_id: UUID
    ends: Mapping[int, PartitionEnd]


class BatchOutcome(msgspec.Struct, frozen=True):
    """The outcome of a batch: per stream, and per partition whose checkpoint was to move."""

    streams: Mapping[UUID, AppendOutcome]
    moves: Mapping[int, CheckpointMoveOutcome]
    contended: bool


EVENT_COLUMNS = (
    "partition, position, stream_id, version, category, tenant, event_id, code, schema_version, "
    "ts, recorded_at, data, meta, private, private_digest, hash, chain"
)
"""Of eventstore.events, as `recorded_events` takes them."""

_COMMIT_SQL = (
    "select kind, stream_id, partition, outcome, version, position "
    "from eventstore.commit($1::json, $2::json, $3::json, $4::json, $5::json)"
)
_VERDICT_BY_SQL_OUTCOME: Mapping[str, Verdict] = {
    "accepted": "accepted",
    "mine": "already_committed",
    "conflict": "conflict",
    "refused": "rejected",
}
"""By the outcomes of `eventstore.commit`, whose names processes of the release before read, too."""
_STREAM_SQL = (
    f"select {EVENT_COLUMNS} from eventstore.events where stream_id = $1 and version > $2 order by version limit $3"  # noqa: S608  # constants
)
_NEWEST_SQL = f"select {EVENT_COLUMNS} from eventstore.events where stream_id = $1 order by version desc limit $2"  # noqa: S608  # constants
# A parameter in a sub-select: PostgreSQL makes one plan, which does not depend on the length of an array or on a limit.
# Otherwise it would plan the statement anew each time, which costs more than to execute it, and more with each leaf.
_STREAMS_SQL = f"""
select {EVENT_COLUMNS} from eventstore.events
where stream_id = any ((select $1::uuid[])::uuid[]) order by stream_id, version
"""  # noqa: S608  # constants
CATEGORY_EVENTS_SQL = (
    "select {columns} from eventstore.events where category = '{category}' order by stream_id, version"
)
_EVENTS_AFTER_SQL = f"""
select e.* from unnest((select $1::smallint[]), (select $2::bigint[])) as c (of_partition, after)
cross join lateral (
    select {EVENT_COLUMNS} from eventstore.events
    where partition = c.of_partition and position > c.after order by position limit (select $3::bigint)
) as e
order by e.partition, e.position
"""  # noqa: S608  # constants
_HEADS_SQL = """
select log_id, p as partition, coalesce(e.position, 0) as position, coalesce(e.chain, '') as chain
from eventstore.log
cross join generate_series(0, partitions - 1) as p
left join lateral (
    select position, chain from eventstore.events where partition = p order by position desc limit 1) as e on true
"""
_CHAIN_HASHES_SQL = """
select partition, chain from unnest((select $1::smallint[]), (select $2::bigint[])) as c (partition, position)
join eventstore.events using (partition, position)
"""
_CHECKPOINTS_SQL = "select partition, position from eventstore.standings where subscription = $1"


class Log:
    """The log of everything that happened. Every method may raise `DatabaseUnavailable`."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self._partitions: int | None = None
        self._confirming = asyncio.Lock()
        self._confirms_begun = 0
        self._confirmed = 0

    async def commit(self, batch: Batch) -> BatchOutcome:
        """Write a batch in one autocommit statement.

        After `DatabaseUnavailable` it is unknown whether it was written; repeating the very same batch is safe as
        long as each of its sends belongs to a stream or partition that the batch also appends to or moves.
        """
        parts = (batch.appends, batch.sends, batch.acks, batch.defers, batch.moves)
        texts = [msgspec.json.encode(part).decode() for part in parts]
        began = time.perf_counter()
        rows = await self.database.execute_once(_COMMIT_SQL, *texts)
        APPEND_SECONDS.observe(time.perf_counter() - began)
        return _batch_outcome(rows)

    async def confirm_replicated(self) -> None:
        """Wait until all that is committed by now is on the synchronous standby, if the server has one configured.

        Called before answering for what an earlier call wrote: that call's wait may have been cut short.
        """
        # One at a time, for all callers that came before it began: each holds a connection while the standby is away.
        needed = self._confirms_begun + 1
        async with self._confirming:
            if self._confirmed >= needed:
                return
            self._confirms_begun += 1
            begun = self._confirms_begun
            await self.database.execute_once("select eventstore.confirm_replicated()")
            self._confirmed = begun

    async def partitions(self) -> int:
        """How many partitions the log has: a power of two, fixed for its life."""
        if self._partitions is None:
            rows = await self.database.read("select partitions from eventstore.log")
            if not rows:
                raise SchemaMissing("eventstore.log is empty; run `dreamforge schema install`")
            self._partitions = int(rows[0]["partitions"])
        return self._partitions

    async def read_stream(self, stream: UUID, *, after: int = 0, limit: int | None = None) -> list[RecordedEvent]:
        """Read the events of one stream after a version, oldest first."""
        return recorded_events(await self.database.read(_STREAM_SQL, stream, after, limit))

    async def newest_event(self, stream: UUID) -> RecordedEvent | None:
        """The newest event of one stream; None if it does not exist."""
        found = await self.latest_events(stream, limit=1)
        return found[0] if found else None

    async def latest_events(self, stream: UUID, *, limit: int) -> list[RecordedEvent]:
        """Read the last events of one stream, newest first."""
        return recorded_events(await self.database.read(_NEWEST_SQL, stream, limit))

    async def read_streams(self, streams: Sequence[UUID]) -> dict[UUID, list[RecordedEvent]]:
        """Read the whole histories of several streams in one statement, so as of one moment."""
        histories: dict[UUID, list[RecordedEvent]] = {stream: [] for stream in streams}
        if streams:
            for event in recorded_events(await self.database.read(_STREAMS_SQL, list(histories))):
                histories[event.stream_id].append(event)
        return histories

    async def read_category(self, category: str) -> dict[UUID, list[RecordedEvent]]:
        """Read the whole histories of all streams of a category that has few, by an index of the application's."""
        if not category.isidentifier():
            raise ValueError(f"{category!r} is no category")
        histories: dict[UUID, list[RecordedEvent]] = {}
        # Not as a parameter: only by a constant does the planner see that a partial index holds the category.
        for event in recorded_events(
            await self.database.read(CATEGORY_EVENTS_SQL.format(columns=EVENT_COLUMNS, category=category))
        ):
            histories.setdefault(event.stream_id, []).append(event)
        return histories

    async def read_after(self, cursor: Mapping[int, int], *, limit: int) -> dict[int, list[RecordedEvent]]:
        """Read at most `limit` events of each partition after its position in the cursor, in order.

        A caller that must not miss any event checks them with `expect_gapless`.
        """
        rows = await self.database.read(_EVENTS_AFTER_SQL, list(cursor), list(cursor.values()), limit)
        batches: dict[int, list[RecordedEvent]] = {}
        for event in recorded_events(rows):
            batches.setdefault(event.partition, []).append(event)
        return batches

    async def read_head(self) -> LogHead:
        """Which log this is, and the newest event of every partition, as of one moment."""
        rows = await self.database.read(_HEADS_SQL)
        if not rows:
            raise SchemaMissing("eventstore.log is empty; run `dreamforge schema install`")
        ends = {row["partition"]: PartitionEnd(row["position"], row["chain"]) for row in rows}
        return LogHead(rows[0]["log_id"], ends)

    async def chain_hashes(self, positions: Mapping[int, int]) -> dict[int, bytes]:
        """The chain hash of the event at a position of each partition; nothing where there is no such event."""
        rows = await self.database.read(_CHAIN_HASHES_SQL, list(positions), list(positions.values()))
        return {row["partition"]: row["chain"] for row in rows}

    async def report_rejection(self, stream: UUID, reader: str, version: int, reason: str) -> None:
        """Report that a stream's history can't be read or folded.

        A second report changes nothing; nor does one of a process whose release is not the schema's newest.
        """
        call = "select eventstore.report_rejection($1, $2, $3, $4, $5)"
        await self.database.execute_once(call, stream, reader, version, reason, RELEASE)

    async def subscribe(self, subscription: str) -> None:
        """Make sure that a subscription has its checkpoints; a new one starts at the log's beginning."""
        await self.database.execute_once("select eventstore.subscribe($1)", subscription)

    async def checkpoints(self, subscription: str) -> dict[int, int]:
        """A subscription's checkpoint in each partition."""
        return {row["partition"]: row["position"] for row in await self.database.read(_CHECKPOINTS_SQL, subscription)}


def expect_gapless(partition: int, after: int, events: Sequence[RecordedEvent]) -> None:
    """Raise `LogDamaged` unless the events follow `after` without a gap."""
    for position, event in enumerate(events, after + 1):
        if event.position != position:
            raise LogDamaged(
                f"partition {partition}: position {position} is missing (next is {event.position}); "
                "an event was removed: restore the log from a backup"
            )


def recorded_events(rows: Sequence[Row]) -> list[RecordedEvent]:
    """Rows of `eventstore.events` as values."""
    return [RecordedEvent(**row) for row in rows]


def _batch_outcome(rows: Sequence[Row]) -> BatchOutcome:
    streams: dict[UUID, AppendOutcome] = {}
    moves: dict[int, CheckpointMoveOutcome] = {}
    contended = False
    for row in rows:
        if row["kind"] == "append":
            streams[row["stream_id"]] = AppendOutcome(_VERDICT_BY_SQL_OUTCOME[row["outcome"]], row["version"])
        elif row["kind"] == "move":
            moves[row["partition"]] = CheckpointMoveOutcome(_VERDICT_BY_SQL_OUTCOME[row["outcome"]], row["position"])
        elif row["kind"] == "contended":
            contended = True
    return BatchOutcome(streams, moves, contended)
