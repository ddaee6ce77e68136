"""Builds the read model anew, beside the one that serves, and puts it in its place. schema.sql says how, step by step.

    begin ─▶ fill: whole jobs folded and copied, by any number of workers ─▶ index ─▶ follow the log ─▶ swap

What was done is kept in the database: whoever begins again after a crash goes on where it ended.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from itertools import groupby
from typing import Any, Literal
from uuid import UUID

import asyncpg
import msgspec

from eventstore.database import UNSTORABLE_ERRORS, Database, Row
from eventstore.events import EventRow
from eventstore.log import Log
from eventstore.notifier import Notifier
from eventstore.subscription import Subscription, SubscriptionGone
from orchestrator import codec
from orchestrator.quarantine import is_set_aside
from projections import job_view
from projections.job_view import JobView
from projections.projector import SHADOW, Projector
from projections.rows import COLUMNS, records

Phase = Literal["filling", "following"]

LONGEST_LAG_S = 1.0
"""For how long an event may have waited for the new read model when it takes the old one's place."""

_JOBS_PER_CHUNK = 500
_PAGE = 2000
_AGAIN_S = 0.1
_LONGEST_PAUSE_S = 2.0
_LEVEL_TRIES = 10

_EVENTS = """
select stream_id, tenant, version, code, schema_version, ts, data, meta, private
from eventstore.events
where stream_id > $1 and stream_id <= $2 and category = 'job' and position <= ($3::bigint[])[partition + 1]
order by stream_id, version
"""
_TAKE = "select chunk, after, upto from projector.take_chunk($1)"
_OTHERS = """
select exists (select from projector.chunks where events is null)
    and exists (select from projector.rebuild where version = $1)
"""
_STATE = """
select g.number, g.version, to_regclass('readmodel_before.generation') is not null as before,
    r.version as building, r.started_at, r.follows, c.chunks, c.filled, c.events,
    (select sum(head)::bigint from unnest(r.heads) as head) as of_events
from readmodel.generation g
left join projector.rebuild r on true
cross join (select count(*) as chunks, count(events) as filled, coalesce(sum(events), 0)::bigint as events
    from projector.chunks) as c
"""


class RebuildFailed(Exception):
    """Why a rebuild or a rollback can't go on, for whoever asked for it."""


class Underway(msgspec.Struct, frozen=True, kw_only=True):
    """A rebuild that was begun, or a rollback, which has no chunks. events: folded, of those at its beginning."""

    views_version: int
    started_at: datetime
    phase: Phase
    chunks: int
    filled: int
    events: int
    of_events: int


class State(msgspec.Struct, frozen=True, kw_only=True):
    """Which build serves. before: is the one before still there, to be rolled back to? rebuild: what is under way."""

    generation: int
    views_version: int
    before: bool
    rebuild: Underway | None


class Rebuild:
    """Rebuilds of the read model. Every method may raise `DatabaseUnavailable`; two processes may do all of it at once.

    The database must not bound its statements: an index of a large table takes its time. generation: the number of the
    one that was begun here; 0 before that.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self.generation = 0

    async def state(self) -> State:
        """Where things stand."""
        row = (await self._database.read(_STATE))[0]
        return State(
            generation=row["number"],
            views_version=row["version"],
            before=row["before"],
            rebuild=None if row["building"] is None else _underway(row),
        )

    async def under_way(self) -> bool:
        """Is any rebuild, or rollback?"""
        return (await self.state()).rebuild is not None

    async def begin(self, *, outdated: bool = False) -> None:
        """Begin, or go on with what was begun for views of this version; one for earlier views is given up.

        outdated: only if what serves is of earlier views. Raises `RebuildFailed` if there is to be none.
        """
        row = await self._unbounded(
            "select * from projector.begin_rebuild($1, $2, $3)", job_view.VERSION, _JOBS_PER_CHUNK, outdated
        )
        if row["reason"] is not None:
            raise RebuildFailed(row["reason"])
        self.generation = row["fresh"]

    async def fill(self, go_on: Callable[[], bool] = lambda: True) -> None:
        """Fill chunks until all are filled, by whomever, or until told to stop after one.

        Raises `RebuildFailed` for a history that this release can't fold.
        """
        while go_on():
            if await self._fill_one():
                continue
            if not await self._ask(_OTHERS, job_view.VERSION):
                return
            await asyncio.sleep(_AGAIN_S)  # the last ones are others' work, unless those die

    async def run(self) -> float:
        """A whole rebuild of what is outdated, by this process alone. Answers as `follow`, and raises as it does."""
        await self.begin(outdated=True)
        await self.fill()
        async for _ in self.index():
            pass
        return await self.follow()

    async def index(self) -> AsyncIterator[str]:
        """Build what indexes are missing, once every chunk is filled; yields each one's name when it is there."""
        while True:
            row = await self._unbounded("select projector.build_index() as name")
            if row["name"] is None:
                return
            yield row["name"]

    async def follow(self) -> float:
        """Follow the log until what was begun lags no more, and swap. Answers its lag at that moment, in seconds.

        Raises `RebuildFailed` if the rebuild was aborted, or if the log can't be followed.
        """
        await self._unbounded("select projector.follow()")
        # It polls: nothing waits for what it writes.
        log = Log(self._database)
        subscription = Subscription(
            log, Notifier(self._database), Projector(self._database, SHADOW), codec.is_known, create=False
        )
        tries = 0
        while True:
            with suppress(SubscriptionGone):
                if await subscription.step():
                    continue
            # Best when the one that serves is not ahead: what goes back for a moment is a list that somebody has seen.
            lag = await self._ask("select projector.swap($1, $2)", LONGEST_LAG_S, tries < _LEVEL_TRIES)
            if lag is not None:
                return float(lag)
            now = await self.state()
            if now.generation == self.generation:
                return 0.0  # another process that followed was the first to swap
            if now.rebuild is None or now.rebuild.phase != "following":
                raise RebuildFailed("it was aborted")
            if failures := [cursor.failure for cursor in subscription.cursors.values() if cursor.failure is not None]:
                raise RebuildFailed(failures[0])
            # Others wait behind a try that waits for a lock.
            await asyncio.sleep(min(_LONGEST_PAUSE_S, _AGAIN_S * 1.3**tries))
            tries += 1

    async def begin_rollback(self) -> None:
        """Begin to bring the one before back, which `follow` ends. Raises `RebuildFailed` if that can't be."""
        [row] = await self._database.call("select * from projector.begin_rollback($1)", job_view.VERSION)
        if row["reason"] is not None:
            raise RebuildFailed(row["reason"])
        self.generation = row["generation"]

    async def abort(self) -> bool:
        """Abort what is under way; a build to be brought back is retired again. Returns whether any was."""
        return bool(await self._ask("select projector.abort_rebuild()"))

    async def pause(self, projection: str, *, paused: bool) -> bool:
        """Pause a projection, or resume it. Returns whether there is one of this name."""
        return bool(await self._ask("select projector.pause($1, $2)", projection, paused))

    async def _unbounded(self, sql: str, *args: object) -> Row:
        """Run a statement that may take long, whatever bound the login's statements have."""
        async with self._transaction() as connection:
            await connection.execute("set local statement_timeout = 0")
            return await connection.fetchrow(sql, *args)

    async def _ask(self, sql: str, *args: object) -> Any:
        return (await self._database.call(sql, *args))[0][0]

    async def _fill_one(self) -> bool:
        async with self._transaction() as connection:
            # Who freezes must not keep its chunk, and all that waits for it.
            await connection.execute("set local idle_in_transaction_session_timeout = '65s'")
            chunk = await connection.fetchrow(_TAKE, job_view.VERSION)
            if chunk is None:
                return False
            heads = await connection.fetchval("select heads from projector.rebuild")
            folded = _Folded()
            cursor = await connection.cursor(_EVENTS, chunk["after"], chunk["upto"], heads)
            while rows := await cursor.fetch(_PAGE):
                folded.add(rows)
            await self._copy_all(connection, folded.end())
            await connection.execute("select projector.finish_chunk($1, $2)", chunk["chunk"], folded.events)
        return True

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[Any]:
        async with self._database.connection() as connection, connection.transaction():
            yield connection

    async def _copy_all(self, connection: asyncpg.Connection, jobs: list[JobView]) -> None:
        try:
            async with connection.transaction():
                await self._copy(connection, jobs)
        except UNSTORABLE_ERRORS as error:
            if len(jobs) > 1:
                for job in jobs:
                    await self._copy_all(connection, [job])
                return
            if not is_set_aside(await Log(self._database).stream(jobs[0].job_id)):
                raise _failed(jobs[0].job_id, error) from error
            await self._copy(connection, [job_view.least(jobs[0], None)])

    async def _copy(self, connection: asyncpg.Connection, jobs: list[JobView]) -> None:
        for table, rows in records(jobs).items():
            await connection.copy_records_to_table(table, schema_name=SHADOW, columns=COLUMNS[table], records=rows)


class _Folded:
    """Jobs folded from events that come in the order of streams and versions, a page at a time."""

    def __init__(self) -> None:
        self.events = 0
        self._jobs: list[JobView] = []
        self._open: list[EventRow] = []

    def add(self, rows: list[Row]) -> None:
        """Fold a page; its first job may have begun on the page before, its last may go on with the next."""
        self.events += len(rows)
        for job_id, of_job in groupby(rows, key=lambda row: row["stream_id"]):
            if self._open and self._open[0].stream_id != job_id:
                self._close()
            self._open.extend(EventRow(**row) for row in of_job)

    def end(self) -> list[JobView]:
        """All jobs, when the last page was added."""
        self._close()
        return self._jobs

    def _close(self) -> None:
        history, self._open = self._open, []
        if history and (found := _view(history)) is not None:
            self._jobs.append(found)


def _view(history: Sequence[EventRow]) -> JobView | None:
    for event in history:
        if not codec.is_known(event.code, event.schema_version):
            raise RebuildFailed(
                f"job {event.stream_id}: this release doesn't know {event.code}, schema version "
                f"{event.schema_version}; rebuild with the release that wrote it"
            )
    try:
        return job_view.of_history(history)
    except Exception as error:
        raise _failed(history[0].stream_id, error) from error


def _failed(job_id: UUID, error: Exception) -> RebuildFailed:
    return RebuildFailed(
        f"job {job_id} can't be folded and stored: {error}; once it is set aside (`dreamforge jobs quarantine list`), "
        "abort this rebuild and begin another"
    )


def _underway(row: Row) -> Underway:
    return Underway(
        views_version=row["building"],
        started_at=row["started_at"],
        phase="following" if row["follows"] else "filling",
        chunks=row["chunks"],
        filled=row["filled"],
        events=row["events"],
        of_events=row["of_events"],
    )
