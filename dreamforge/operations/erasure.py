"""`dreamforge audit erase` and `scrub_tables`: remove private text. Every hash still verifies afterwards."""

import argparse
import asyncio
import hashlib
import time
from collections.abc import Iterable, Sequence
from uuid import UUID

import msgspec
from rich.console import Group, RenderableType
from rich.filesize import decimal
from rich.table import Table

from artifacts.encoding import content_type
from artifacts.errors import InvalidSource, ObjectChanged, ObjectMissing
from artifacts.lineage import remove_private_text
from artifacts.object_store import ObjectStore, StoredObject
from dreamforge.backends import run_with_backends, user_at_host
from dreamforge.cli.console import (
    CONFLICT,
    FAILED,
    NOT_FOUND,
    OK,
    UNAVAILABLE,
    plain_table,
    print_message,
    print_result,
)
from dreamforge.embedded import EmbeddedSeaweed
from dreamforge.settings import Settings
from eventstore.committer import Committer
from eventstore.database import Database
from eventstore.errors import DatabaseAccessDenied
from eventstore.log import Log
from eventstore.notifier import Notifier
from orchestrator import codec
from orchestrator.copying import copy_fields
from orchestrator.decisions import CommandRejected, RequestErasure
from orchestrator.events import PRIVATE_FIELDS, ArtifactEvent, ArtifactRewritten, JobErased, Meta
from orchestrator.plan import object_prefix
from orchestrator.service import JobInQuarantine, JobService, NoSuchJob, UnreadableJob, append_unconditionally
from orchestrator.step_kinds import STEP_KINDS
from projections.rebuild import Rebuild

# Commands of earlier releases carry the client's traceparent.
_COMMAND_TABLES = tuple(f"pgmq.{table}_{step}" for table in "aq" for step in STEP_KINDS)
_REMOVE_TRACEPARENT_SQL = (
    "update {} set message = message - 'traceparent' where message @> $1::jsonb and message ? 'traceparent'"
)
_TABLES_WITH_TEXT_SQL = """
select format('%I.%I', schemaname, tablename) as name,
    pg_has_role(current_user, tableowner, 'usage') as own
from pg_tables
where (schemaname, tablename) = ('eventstore', 'private')
    -- The log of a release before 6, of which the text was a column.
    or schemaname = 'eventstore' and tablename like 'envelopes_to_%' and exists (
        select from pg_attribute where attrelid = format('%I.%I', schemaname, tablename)::regclass and attisdropped)
    or schemaname || '.' || tablename = any ($1)
    or tablename = 'jobs' and schemaname in ('readmodel', 'readmodel_before', 'readmodel_shadow')
order by 1
"""
# VACUUM FULL also copies rows that an old snapshot may still see.
_SNAPSHOT_HOLDERS_SQL = """
select string_agg(who, ', ') as who from (
    select format('process %s (%s)', pid, application_name) as who from pg_stat_activity
    where pid <> pg_backend_pid() and age(backend_xmin) > age($1::text::xid)
    union all
    select format('prepared transaction %s', gid) from pg_prepared_xacts where age(transaction) > age($1::text::xid)
    union all
    select format('replication slot %s', slot_name) from pg_replication_slots
    where greatest(age(xmin), age(catalog_xmin)) > age($1::text::xid)
) as holders
"""
_SECONDS_SINCE_LAST_EVENT_SQL = """
select extract(epoch from clock_timestamp() - max(recorded_at))::float8 as seconds
from eventstore.events where stream_id = $1
"""
_SNAPSHOT_TIMEOUT_S = 20.0
_TABLE_SIZE_SQL = "select pg_total_relation_size($1::regclass) as bytes"


class ErasedJob(msgspec.Struct, frozen=True, kw_only=True):
    """A job whose private text was removed. events, files: how many had text; 0 if it was erased before.

    damaged: keys of files that are no valid image, and may still contain text.
    """

    job_id: UUID
    version: int
    events: int
    files: int
    damaged: list[str]


class ScrubbedTable(msgspec.Struct, frozen=True, kw_only=True):
    """A table that was rewritten. before, after: its size with indexes, in bytes."""

    table: str
    before: int
    after: int
    seconds: float


class ScrubResult(msgspec.Struct, frozen=True, kw_only=True):
    """The rewritten tables. problem: why copies of old rows may remain; null if none remain."""

    tables: list[ScrubbedTable]
    problem: str | None


def erase_jobs(args: argparse.Namespace, settings: Settings) -> int:
    """Erase the private text of some jobs; returns the exit code."""
    found: list[ErasedJob] = []

    async def run(database: Database, store: ObjectStore) -> tuple[int, str]:
        log = Log(database)
        notifier = Notifier(database)
        committer = Committer(log, notifier)
        jobs = JobService(log, committer, user_at_host())
        try:
            for job in args.jobs:
                try:
                    found.append(await _erase_job(database, store, jobs, job, settings.lease_s))
                except NoSuchJob as error:
                    return NOT_FOUND, str(error)
                except CommandRejected as error:
                    return CONFLICT, f"job {job}: {error}"
                except UnreadableJob as error:
                    await jobs.report_unreadable(error, "audit")
                    return UNAVAILABLE, f"{error}; it is being set aside, and can be erased then: try again"
        finally:
            await committer.stop()
            await notifier.stop()
        return OK, ""

    code, reason = run_with_backends(settings, "audit", run)
    print_result(args.output, found, _erased_jobs_table(found))
    if reason:
        return print_message(code, reason)
    damaged = [key for one in found for key in one.damaged]
    return print_message(FAILED, f"damaged, and may hold text: delete {', '.join(damaged)}") if damaged else OK


def scrub_tables(args: argparse.Namespace, settings: Settings) -> int:
    """Rewrite the tables that had private text, and the embedded store's volumes; returns the exit code."""

    async def run(database: Database, _store: ObjectStore) -> ScrubResult:
        seaweed = EmbeddedSeaweed.find_running(settings.home) if settings.s3_endpoint is None else None
        if seaweed is not None:
            await asyncio.to_thread(seaweed.compact_volumes)
        if await Rebuild(database).is_under_way():
            return ScrubResult(
                tables=[], problem="a rebuild is under way, and may hold the text: scrub when it has ended"
            )
        rows = await database.read(_TABLES_WITH_TEXT_SQL, _COMMAND_TABLES)
        if foreign := [row["name"] for row in rows if not row["own"]]:
            return ScrubResult(
                tables=[], problem=f"only their owner can write {', '.join(foreign)} anew: use its login"
            )
        problem = await _wait_for_old_snapshots(database)
        tables = [await _vacuum_full(database, row["name"]) for row in rows]
        return ScrubResult(tables=tables, problem=problem or await _remove_old_wal(database))

    found = run_with_backends(settings, "audit", run)
    print_result(args.output, found, _scrub_result_table(found))
    return FAILED if found.problem else OK


async def _erase_job(
    database: Database, store: ObjectStore, jobs: JobService, job_id: UUID, lease_s: float
) -> ErasedJob:
    # The event first: after a crash, the erasure can be repeated. Without it, missing text would look like damage.
    try:
        state = await jobs.load(job_id)
    except JobInQuarantine:
        keys, version = await _append_erasure_events(database, store, job_id, lease_s)
    else:
        if state.outcome not in {None, "succeeded"}:  # otherwise all objects are written
            await _wait_for_lease_end(database, job_id, lease_s)
        written = [artifact for step in state.steps for artifact in step.artifacts.values()]
        keys = await _list_object_keys(store, state.tenant, job_id, written)
        rewritten = () if state.erased or state.outcome is None else await _artifact_rewritten_events(store, written)
        state = await jobs.commit_request(
            state.tenant, job_id, RequestErasure(rewritten=rewritten), Meta(actor=user_at_host())
        )
        version = state.version
    rows = await database.execute_once("select eventstore.erase($1) as events", job_id)
    await database.execute_once("select projector.forget($1)", job_id)
    for table in _COMMAND_TABLES:
        await database.execute_once(
            _REMOVE_TRACEPARENT_SQL.format(table), msgspec.json.encode({"job_id": job_id}).decode()
        )
    files, damaged = 0, []
    for key in keys:
        try:
            anonymous = await _get_without_private_text(store, key)
        except (InvalidSource, ObjectChanged):
            damaged.append(key)
            continue
        if anonymous is not None:
            await store.replace(key, anonymous, content_type("jpg" if key.endswith(".jpg") else "png"))
            files += 1
    return ErasedJob(job_id=job_id, version=version, events=rows[0]["events"], files=files, damaged=damaged)


async def _append_erasure_events(
    database: Database, store: ObjectStore, job_id: UUID, lease_s: float
) -> tuple[list[str], int]:
    """Append the events of an erasure to a quarantined job, from its readable events. Returns its keys and version."""
    log = Log(database)
    history = await log.read_stream(job_id)
    tenant = history[0].tenant
    await _wait_for_lease_end(database, job_id, lease_s)
    bodies = [codec.decode_body_or_none(event) for event in history]
    written = {body.s3_key: body for body in bodies if isinstance(body, ArtifactEvent)}
    if all(event.code != JobErased.code for event in history):
        for body in [
            *await _artifact_rewritten_events(store, list(written.values())),
            JobErased(erased=list(PRIVATE_FIELDS)),
        ]:
            await append_unconditionally(log, job_id, "job", body, user_at_host(), tenant=tenant)
    else:
        await log.confirm_replicated()
    newest = await log.newest_event(job_id)
    keys = await _list_object_keys(store, tenant, job_id, written.values())
    return keys, len(history) if newest is None else newest.version


async def _list_object_keys(
    store: ObjectStore, tenant: str, job_id: UUID, artifacts: Iterable[ArtifactEvent]
) -> list[str]:
    """The keys of a job's objects: listed ones, which include those of interrupted attempts, and recorded ones.

    Recorded keys are included even if the store does not list them: after a SIGKILL, SeaweedFS can serve an object that
    it does not list.
    """
    listed = await store.list_keys(object_prefix(tenant, job_id))
    return sorted({*listed, *(artifact.s3_key for artifact in artifacts)})


async def _wait_for_lease_end(database: Database, job_id: UUID, lease_s: float) -> None:
    """Wait until the lease of a stopped runner has ended, so that it writes no more objects."""
    [ended] = await database.read(_SECONDS_SINCE_LAST_EVENT_SQL, job_id)
    await asyncio.sleep(max(0.0, lease_s - ended["seconds"]))


async def _artifact_rewritten_events(store: ObjectStore, artifacts: Sequence[ArtifactEvent]) -> list[ArtifactRewritten]:
    """The events for a job's files that contain private text, with the size and hash that they have without it."""
    events = []
    for artifact in artifacts:
        try:
            body = await store.get_verified(artifact.s3_key, StoredObject(artifact.bytes, artifact.sha256))
            anonymous = remove_private_text(body)
        except (InvalidSource, ObjectMissing, ObjectChanged):
            continue  # an event would declare a foreign or damaged file valid
        if anonymous == body:
            continue
        sha256 = hashlib.sha256(anonymous).hexdigest()
        events.append(copy_fields(artifact, ArtifactRewritten, bytes=len(anonymous), sha256=sha256, rendering=None))
    return events


async def _get_without_private_text(store: ObjectStore, key: str) -> bytes | None:
    """A file's bytes without private text; None if it is missing or has none. Raises `InvalidSource`."""
    try:
        body = await store.get(key)
    except ObjectMissing:
        return None
    anonymous = remove_private_text(body)
    return None if anonymous == body else anonymous


async def _wait_for_old_snapshots(database: Database) -> str | None:
    """Wait until no snapshot can see the erased rows. Returns a problem if one remains; else None."""
    [now] = await database.execute_once("select pg_current_xact_id()::xid::text as xid")
    deadline = time.monotonic() + _SNAPSHOT_TIMEOUT_S
    while (who := (await database.read(_SNAPSHOT_HOLDERS_SQL, now["xid"]))[0]["who"]) is not None:
        if time.monotonic() > deadline:
            return f"rows of before may have been copied for {who}: end it, and scrub again"
        await asyncio.sleep(0.2)
    return None


async def _vacuum_full(database: Database, table: str) -> ScrubbedTable:
    """Rewrite a table into a new file. A plain VACUUM would leave bytes of removed rows in the pages."""
    [before] = await database.read(_TABLE_SIZE_SQL, table)
    began = time.monotonic()
    await database.execute_once(f"vacuum (full, analyze) {table}")
    [after] = await database.read(_TABLE_SIZE_SQL, table)
    return ScrubbedTable(table=table, before=before["bytes"], after=after["bytes"], seconds=time.monotonic() - began)


async def _remove_old_wal(database: Database) -> str | None:
    """Make the server remove its old write-ahead log. Returns a problem if it may not have; else None."""
    try:
        await database.execute_once("select pg_switch_wal()")
        await database.execute_once("checkpoint")
        [recycled] = await database.read("select current_setting('wal_recycle')::boolean as recycled")
    except DatabaseAccessDenied as error:
        return f"the write-ahead log stays until the server's next checkpoints: {error}"
    if recycled["recycled"]:
        return "the server keeps old segments of its write-ahead log for use again; set wal_recycle = off"
    return None


def _erased_jobs_table(erased_jobs: Sequence[ErasedJob]) -> Table:
    rows = [(one.job_id, one.version, one.events or "none was left", one.files) for one in erased_jobs]
    return plain_table("JOB", "VERSION", "TEXTS ERASED", "FILES", rows=rows)


def _scrub_result_table(scrub_result: ScrubResult) -> RenderableType:
    rows = [(one.table, decimal(one.before), decimal(one.after), f"{one.seconds:.1f}") for one in scrub_result.tables]
    table = plain_table("TABLE", "BEFORE", "AFTER", "SECONDS", rows=rows)
    return table if scrub_result.problem is None else Group(table, "", scrub_result.problem)
