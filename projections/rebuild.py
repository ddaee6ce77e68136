"""Builds a new generation of the read model beside the one that serves, and swaps it in. schema.sql has the steps.

    begin ─▶ fill: whole jobs folded and copied, by any number of workers ─▶ index ─▶ follow the log ─▶ swap

The progress is stored in the database: after a crash, the next `begin` resumes.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from datetime import datetime
from itertools import groupby
from typing import Any, Literal
from uuid import UUID

import asyncpg
import msgspec

from eventstore.database import UNSTORABLE_VALUE_ERRORS, Database, Row
from eventstore.events import EventRow
from eventstore.log import Log
from eventstore.notifier import Notifier
from eventstore.subscription import Subscription, SubscriptionGone
from orchestrator import codec
from orchestrator.quarantine import is_quarantined
from projections import job_view
from projections.job_view import JobView
from projections.projector import SHADOW_SCHEMA, Projector
from projections.rows import COPY_COLUMNS, copy_records

RebuildPhase = Literal["filling", "following"]

MAX_SWAP_LAG_S = 1.0
"""The largest lag of the new generation, in seconds, at which it is swapped in."""

_JOBS_PER_CHUNK = 500
_EVENTS_PER_FETCH = 2000
_RETRY_PAUSE_S = 0.1
_MAX_RETRY_PAUSE_S = 2.0
_STRICT_SWAP_TRIES = 10

_CHUNK_EVENTS_SQL = """
select stream_id, tenant, version, code, schema_version, ts, data, meta, private
from eventstore.events
where stream_id > $1 and stream_id <= $2 and category = 'job' and position <= ($3::bigint[])[partition + 1]
order by stream_id, version
"""
_TAKE_CHUNK_SQL = "select chunk, after, upto from projector.take_chunk($1)"
_HAS_UNFINISHED_CHUNKS_SQL = """
select exists (select from projector.chunks where events is null)
    and exists (select from projector.rebuild where version = $1)
"""
_READ_MODEL_STATE_SQL = """
select g.number, g.version, to_regclass('readmodel_before.generation') is not null as before,
    r.version as building, r.started_at, r.follows, c.chunks, c.filled, c.events,
    (select sum(head)::bigint from unnest(r.heads) as head) as of_events
from readmodel.generation g
left join projector.rebuild r on true
cross join (select count(*) as chunks, count(events) as filled, coalesce(sum(events), 0)::bigint as events
    from projector.chunks) as c
"""


class RebuildFailed(Exception):
    """A rebuild or rollback cannot continue; the message says why."""


class RebuildProgress(msgspec.Struct, frozen=True, kw_only=True):
    """The progress of a rebuild or rollback. A rollback has no chunks. events: folded, of `of_events` at its start."""

    views_version: int
    started_at: datetime
    phase: RebuildPhase
    chunks: int
    filled: int
    events: int
    of_events: int


class ReadModelState(msgspec.Struct, frozen=True, kw_only=True):
    """Which generation serves. before: whether the previous one still exists. rebuild: the one in progress."""

    generation: int
    views_version: int
    before: bool
    rebuild: RebuildProgress | None


class Rebuild:
    """Rebuilds of the read model. Two processes may call any method at once. Methods may raise `DatabaseUnavailable`.

    The database connection must have no statement timeout: an index on a large table takes long. generation: the number
    of the generation that this object began; 0 before that.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self.generation = 0

    async def state(self) -> ReadModelState:
        """Which generation serves, and the progress of a rebuild."""
        row = (await self._database.read(_READ_MODEL_STATE_SQL))[0]
        return ReadModelState(
            generation=row["number"],
            views_version=row["version"],
            before=row["before"],
            rebuild=None if row["building"] is None else _rebuild_progress(row),
        )

    async def is_under_way(self) -> bool:
        """Whether a rebuild or rollback is in progress."""
        return (await self.state()).rebuild is not None

    async def begin(self, *, outdated: bool = False) -> None:
        """Begin a rebuild, or resume one for this version of the views. A rebuild for an earlier version is aborted.

        outdated: only if the generation that serves has an earlier version. Raises `RebuildFailed` if not begun.
        """
        row = await self._call_untimed(
            "select * from projector.begin_rebuild($1, $2, $3)", job_view.VIEWS_VERSION, _JOBS_PER_CHUNK, outdated
        )
        if row["reason"] is not None:
            raise RebuildFailed(row["reason"])
        self.generation = row["fresh"]

    async def fill_chunks(self, should_continue: Callable[[], bool] = lambda: True) -> None:
        """Fill chunks until this and other processes have filled all, or until `should_continue` returns False.

        Raises `RebuildFailed` for a history that this release cannot fold.
        """
        while should_continue():
            if await self._fill_chunk():
                continue
            if not await self._call_scalar(_HAS_UNFINISHED_CHUNKS_SQL, job_view.VIEWS_VERSION):
                return
            await asyncio.sleep(_RETRY_PAUSE_S)  # other processes fill the last chunks, unless they die

    async def run(self) -> float:
        """Rebuild an outdated read model in this process alone. Returns and raises as `follow_and_swap`."""
        await self.begin(outdated=True)
        await self.fill_chunks()
        async for _ in self.build_missing_indexes():
            pass
        return await self.follow_and_swap()

    async def build_missing_indexes(self) -> AsyncIterator[str]:
        """Build the missing indexes, after every chunk is filled. Yields the name of each new index."""
        while True:
            row = await self._call_untimed("select projector.build_index() as name")
            if row["name"] is None:
                return
            yield row["name"]

    async def follow_and_swap(self) -> float:
        """Follow the log until the new generation has caught up, and swap. Returns its lag at the swap, in seconds.

        Raises `RebuildFailed` if the rebuild was aborted or the log cannot be followed.
        """
        await self._call_untimed("select projector.follow()")
        # The notifier is not started: this subscription only polls.
        log = Log(self._database)
        subscription = Subscription(
            log, Notifier(self._database), Projector(self._database, SHADOW_SCHEMA), codec.is_known, create=False
        )
        tries = 0
        while True:
            with suppress(SubscriptionGone):
                if await subscription.poll_once():
                    continue
            # The first tries require that the new generation is not behind the one that serves: lists would go back.
            lag = await self._call_scalar("select projector.swap($1, $2)", MAX_SWAP_LAG_S, tries < _STRICT_SWAP_TRIES)
            if lag is not None:
                return float(lag)
            now = await self.state()
            if now.generation == self.generation:
                return 0.0  # another process has swapped
            if now.rebuild is None or now.rebuild.phase != "following":
                raise RebuildFailed("it was aborted")
            if failures := [cursor.failure for cursor in subscription.cursors.values() if cursor.failure is not None]:
                raise RebuildFailed(failures[0])
            # A swap that waits for a lock blocks other transactions: pause between the tries.
            await asyncio.sleep(min(_MAX_RETRY_PAUSE_S, _RETRY_PAUSE_S * 1.3**tries))
            tries += 1

    async def begin_rollback(self) -> None:
        """Begin a rollback to the previous generation; `follow_and_swap` completes it. Raises `RebuildFailed`."""
        [row] = await self._database.execute_once("select * from projector.begin_rollback($1)", job_view.VIEWS_VERSION)
        if row["reason"] is not None:
            raise RebuildFailed(row["reason"])
        self.generation = row["generation"]

    async def abort(self) -> bool:
        """Abort a rebuild or rollback. Returns whether one was in progress."""
        return bool(await self._call_scalar("select projector.abort_rebuild()"))

    async def set_paused(self, projection: str, *, paused: bool) -> bool:
        """Pause or resume a projection. Returns whether a projection with this name exists."""
        return bool(await self._call_scalar("select projector.pause($1, $2)", projection, paused))

    async def _call_untimed(self, sql: str, *args: object) -> Row:
        """Run a statement without a timeout, whatever timeout the login has."""
        async with self._database.transaction() as connection:
            await connection.execute("set local statement_timeout = 0")
            return await connection.fetchrow(sql, *args)

    async def _call_scalar(self, sql: str, *args: object) -> Any:
        return (await self._database.execute_once(sql, *args))[0][0]

    async def _fill_chunk(self) -> bool:
        async with self._database.transaction() as connection:
            # A frozen process must not keep its chunk locked.
            await connection.execute("set local idle_in_transaction_session_timeout = '65s'")
            chunk = await connection.fetchrow(_TAKE_CHUNK_SQL, job_view.VIEWS_VERSION)
            if chunk is None:
                return False
            heads = await connection.fetchval("select heads from projector.rebuild")
            folder = _JobFolder()
            cursor = await connection.cursor(_CHUNK_EVENTS_SQL, chunk["after"], chunk["upto"], heads)
            while rows := await cursor.fetch(_EVENTS_PER_FETCH):
                folder.fold_page(rows)
            await self._copy_storable_views(connection, folder.finish())
            await connection.execute("select projector.finish_chunk($1, $2)", chunk["chunk"], folder.events)
        return True

    async def _copy_storable_views(self, connection: asyncpg.Connection, views: list[JobView]) -> None:
        try:
            async with connection.transaction():
                await self._copy_views(connection, views)
        except UNSTORABLE_VALUE_ERRORS as error:
            if len(views) > 1:
                for job in views:
                    await self._copy_storable_views(connection, [job])
                return
            if not is_quarantined(await Log(self._database).read_stream(views[0].job_id)):
                raise _rebuild_error(views[0].job_id, error) from error
            await self._copy_views(connection, [job_view.minimal_view(views[0], None)])

    async def _copy_views(self, connection: asyncpg.Connection, views: list[JobView]) -> None:
        for table, rows in copy_records(views).items():
            await connection.copy_records_to_table(
                table, schema_name=SHADOW_SCHEMA, columns=COPY_COLUMNS[table], records=rows
            )


class _JobFolder:
    """Folds jobs from pages of events that are ordered by stream and version."""

    def __init__(self) -> None:
        self.events = 0
        self._jobs: list[JobView] = []
        self._open: list[EventRow] = []

    def fold_page(self, rows: list[Row]) -> None:
        """Fold a page. A job may begin on an earlier page and end on a later one."""
        self.events += len(rows)
        for job_id, of_job in groupby(rows, key=lambda row: row["stream_id"]):
            if self._open and self._open[0].stream_id != job_id:
                self._finish_open_job()
            self._open.extend(EventRow(**row) for row in of_job)

    def finish(self) -> list[JobView]:
        """All jobs. Call it after the last page."""
        self._finish_open_job()
        return self._jobs

    def _finish_open_job(self) -> None:
        history, self._open = self._open, []
        if history and (view := _fold_job(history)) is not None:
            self._jobs.append(view)


def _fold_job(history: Sequence[EventRow]) -> JobView | None:
    for event in history:
        if not codec.is_known(event.code, event.schema_version):
            raise RebuildFailed(
                f"job {event.stream_id}: this release doesn't know {event.code}, schema version "
                f"{event.schema_version}; rebuild with the release that wrote it"
            )
    try:
        return job_view.fold_history(history)
    except Exception as error:
        raise _rebuild_error(history[0].stream_id, error) from error


def _rebuild_error(job_id: UUID, error: Exception) -> RebuildFailed:
    return RebuildFailed(
        f"job {job_id} can't be folded and stored: {error}; once it is quarantined (`dreamforge jobs quarantine list`) "
        "abort this rebuild and begin another"
    )


def _rebuild_progress(row: Row) -> RebuildProgress:
    return RebuildProgress(
        views_version=row["building"],
        started_at=row["started_at"],
        phase="following" if row["follows"] else "filling",
        chunks=row["chunks"],
        filled=row["filled"],
        events=row["events"],
        of_events=row["of_events"],
    )
