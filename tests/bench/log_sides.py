"""The logs that part 12 compares: Dream Forge's, a bare table with the same columns, and that of `eventsourcing`."""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit
from uuid import UUID

import asyncpg

from eventstore.database import Database
from eventstore.events import NewEvent
from eventstore.ids import new_id
from eventstore.integrity.reader import AuditReader
from eventstore.integrity.verifier import Verifier
from eventstore.log import Append, Batch, Log, expect_gapless
from orchestrator import codec
from orchestrator.state import apply
from tests.bench.filling import history, new_events

BARE_TABLE = """
create table bare_events (
    partition smallint not null, position bigint generated always as identity, stream_id uuid not null,
    version integer not null, category text not null, tenant text not null, event_id uuid not null, code text not null,
    schema_version smallint not null, ts timestamptz not null,
    recorded_at timestamptz not null default clock_timestamp(), data json not null, meta json not null,
    private_digest bytea, hash bytea not null, chain bytea not null,
    primary key (partition, position), unique (stream_id, version)
)
"""
_BARE_COLUMNS = {
    "partition": "smallint",
    "stream_id": "uuid",
    "version": "integer",
    "category": "text",
    "tenant": "text",
    "event_id": "uuid",
    "code": "text",
    "schema_version": "smallint",
    "ts": "timestamptz",
    "data": "json",
    "meta": "json",
    "hash": "bytea",
    "chain": "bytea",
}
_READ_EACH = 1000
"""Events of each of eight partitions in one statement; `eventsourcing`, with one sequence, reads as many in all."""
_FILL_STREAMS = 50
_WRITTEN = 3
"""The place of an `artifact.written` in a history."""


class LogSide(Protocol):
    """A log. Each method returns how many events it wrote or read. Reads raise RuntimeError if they find none."""

    async def append_for(self, seconds: float, batch: int, connections: int) -> int:
        """Append events to as many new streams in each call."""

    async def read_log(self) -> int:
        """Read the whole log in its order."""

    async def read_histories(self, streams: int) -> int:
        """Read the histories of so many streams, one by one."""


class OurLog:
    """Dream Forge's log."""

    def __init__(self, db_url: str) -> None:
        self._db_url = db_url

    async def append_for(self, seconds: float, batch: int, connections: int) -> int:
        """By `Log.commit`."""
        database = Database(self._db_url, max_connections=connections)
        log = Log(database)

        async def call() -> None:
            appends = [
                Append(stream=new_id(), category="job", expected=0, events=(_new_event(),)) for _ in range(batch)
            ]
            await log.commit(Batch(appends=appends))

        calls = await _repeat([call] * connections, seconds)
        await database.close()
        return calls * batch

    async def read_log(self) -> int:
        """By `Log.read_after`."""
        database = Database(self._db_url, max_connections=1)
        log, events = Log(database), 0
        cursor = dict.fromkeys(range(await log.partitions()), 0)
        while batches := await log.read_after(cursor, limit=_READ_EACH):
            for partition, read in batches.items():
                expect_gapless(partition, cursor[partition], read)
                cursor[partition] = read[-1].position
                events += len(read)
        await database.close()
        return events

    async def read_histories(self, streams: int) -> int:
        """By `Log.read_stream`."""
        database = Database(self._db_url, max_connections=1)
        log, events = Log(database), 0
        for stream in await self._streams(streams):
            events += len(await log.read_stream(stream))
        await database.close()
        return events

    async def fold(self, streams: int) -> tuple[int, float]:
        """Decode histories that were read before, and fold them into states; the events, and the seconds."""
        database = Database(self._db_url, max_connections=1)
        histories = list((await Log(database).read_streams(await self._streams(streams))).values())
        await database.close()
        began = time.perf_counter()
        for events in histories:
            codec.fold(apply, map(codec.decode_event, events))
        return sum(map(len, histories)), time.perf_counter() - began

    async def verify(self) -> int:
        """As `dreamforge audit verify --all` does. Raises RuntimeError if an event does not verify."""
        database = Database(self._db_url, max_connections=1)
        reader, events = AuditReader(database), 0
        verifier = Verifier(await reader.read_log_identity(), whole=True, vocabulary=codec.COLUMN_VOCABULARY)
        for partition in await reader.nonempty_partitions():
            async for page in reader.read_pages(partition):
                events += len(page)
                if any(verifier.check_event(event) for event in page):
                    raise RuntimeError("an event does not verify")
        if verifier.take_open_violations():
            raise RuntimeError("an event does not verify")
        await database.close()
        return events

    async def _streams(self, streams: int) -> list[UUID]:
        statement = "select stream_id from eventstore.envelopes where version = 1 limit $1"
        return await _column(self._db_url, statement, streams)


class BareTable:
    """A table with the columns and the indexes of ours, which the client fills as they are: no hashes, no checks."""

    def __init__(self, db_url: str) -> None:
        self._db_url = db_url

    async def append_for(self, seconds: float, batch: int, connections: int) -> int:
        """By one INSERT of arrays."""
        arrays = ", ".join(f"${number}::{kind}[]" for number, kind in enumerate(_BARE_COLUMNS.values(), 1))
        statement = f"insert into bare_events ({', '.join(_BARE_COLUMNS)}) select * from unnest({arrays})"
        pool = [await asyncpg.connect(self._db_url) for _ in range(connections)]

        def calling(connection: asyncpg.Connection) -> Callable[[], Awaitable[None]]:
            async def call() -> None:
                rows = [_bare_row(_new_event()) for _ in range(batch)]
                await connection.fetch(statement, *map(list, zip(*rows, strict=True)))

            return call

        calls = await _repeat(list(map(calling, pool)), seconds)
        for connection in pool:
            await connection.close()
        return calls * batch


class EventsourcingLog:
    """The PostgreSQL recorder of `eventsourcing`, with its functions in the database, as a library with threads."""

    def __init__(self, db_url: str) -> None:
        self._db_url = db_url

    async def install(self) -> int:
        """Create its table and functions."""
        recorder = self._recorder(1)
        recorder.create_table()
        recorder.datastore.close()
        return 0

    async def fill(self, jobs: int) -> int:
        """Append the histories that fill our log."""
        recorder, written = self._recorder(1), 0
        for first in range(1, jobs + 1, _FILL_STREAMS):
            numbers = range(first, min(first + _FILL_STREAMS, jobs + 1))
            stored = [one for number in numbers for one in _stored(new_id(), new_events(history(number)))]
            recorder.insert_events(stored)
            written += len(stored)
        recorder.datastore.close()
        return written

    async def append_for(self, seconds: float, batch: int, connections: int) -> int:
        """By `insert_events`."""
        recorder = self._recorder(connections)

        def client() -> int:
            calls, end = 0, time.perf_counter() + seconds
            while time.perf_counter() < end:
                recorder.insert_events([one for _ in range(batch) for one in _stored(new_id(), [_new_event()])])
                calls += 1
            return calls

        with ThreadPoolExecutor(connections) as threads:
            clients = [threads.submit(client) for _ in range(connections)]
            calls = sum(one.result() for one in clients)
        recorder.datastore.close()
        return calls * batch

    async def read_log(self) -> int:
        """By `select_notifications`."""
        recorder, events, after = self._recorder(1), 0, 0
        while read := recorder.select_notifications(after, 8 * _READ_EACH, inclusive_of_start=False):
            events += len(read)
            after = read[-1].id
        recorder.datastore.close()
        return events

    async def read_histories(self, streams: int) -> int:
        """By `select_events`."""
        statement = "select originator_id from stored_events where originator_version = 1 limit $1"
        recorder, events = self._recorder(1), 0
        for stream in await _column(self._db_url, statement, streams):
            events += len(recorder.select_events(stream))
        recorder.datastore.close()
        return events

    def _recorder(self, connections: int) -> Any:
        from eventsourcing.postgres import (  # noqa: PLC0415  # only this side needs it
            PostgresApplicationRecorder,
            PostgresDatastore,
        )

        parts = urlsplit(self._db_url)
        datastore = PostgresDatastore(
            *(parts.path[1:], parts.hostname, parts.port, unquote(parts.username or ""), unquote(parts.password or "")),
            pool_size=connections,
            enable_db_functions=True,
        )
        return PostgresApplicationRecorder(datastore)


async def _repeat(calls: Sequence[Callable[[], Awaitable[None]]], seconds: float) -> int:
    """Make each call again and again, all at once, for so long; how many were made."""
    end = time.perf_counter() + seconds

    async def client(call: Callable[[], Awaitable[None]]) -> int:
        made = 0
        while time.perf_counter() < end:
            await call()
            made += 1
        return made

    return sum(await asyncio.gather(*map(client, calls)))


async def _column(db_url: str, statement: str, limit: int) -> list[Any]:
    connection = await asyncpg.connect(db_url)
    found = [row[0] for row in await connection.fetch(statement, limit)]
    await connection.close()
    if not found:
        raise RuntimeError("there is nothing to read")
    return found


_BODY = history(1)[_WRITTEN]


def _new_event() -> NewEvent:
    """An `artifact.written`, which most events are."""
    return new_events([_BODY])[0]


def _bare_row(event: NewEvent) -> tuple[Any, ...]:
    stream, digest = new_id(), os.urandom(32)
    fixed = (stream.bytes[-1] & 7, stream, 1, "job", "default")
    own = (event.event_id, event.code, event.schema_version, datetime.now(UTC), event.data, event.meta)
    return (*fixed, *own, digest, digest)


def _stored(stream: UUID, events: Sequence[NewEvent]) -> list[Any]:
    """Events as `eventsourcing` stores them: what its mapper makes of an event is one text, too."""
    from eventsourcing.persistence import StoredEvent  # noqa: PLC0415  # only this side needs it

    return [
        StoredEvent(stream, version, event.code, (event.data + (event.private or "")).encode())
        for version, event in enumerate(events, 1)
    ]
