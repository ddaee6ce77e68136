"""What `dreamforge audit erase` and `scrub` do: personal text goes, every hash still verifies."""

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
from dreamforge.backends import actor, ask_backends
from dreamforge.cli.console import CONFLICT, FAILED, NOT_FOUND, OK, UNAVAILABLE, complain, print_answer
from dreamforge.embedded import EmbeddedSeaweed
from dreamforge.settings import Settings
from eventstore.committer import Committer
from eventstore.database import Database
from eventstore.errors import DatabaseRefused
from eventstore.log import Log
from eventstore.notifier import Notifier
from orchestrator import codec
from orchestrator.decisions import Refused, RequestErasure
from orchestrator.events.base import PRIVATE, Meta
from orchestrator.events.jobs import JobErased
from orchestrator.events.steps import ArtifactEvent, ArtifactRewritten
from orchestrator.plan import object_prefix
from orchestrator.service import JobService, NoSuchJob, SetAside, Unreadable, append_unconditionally
from projections.rebuild import Rebuild

# Commands of earlier releases carry the client's traceparent.
_COMMANDS = ("pgmq.a_generate", "pgmq.a_upscale", "pgmq.q_generate", "pgmq.q_upscale")
_FORGET_TRACE = "update {} set message = message - 'traceparent' where message @> $1::jsonb and message ? 'traceparent'"
_TABLES = """
select format('%I.%I', schemaname, tablename) as name,
    pg_has_role(current_user, tableowner, 'usage') as own
from pg_tables
where (schemaname, tablename) = ('eventstore', 'events')
    or schemaname || '.' || tablename = any ($1)
    or tablename = 'jobs' and schemaname in ('readmodel', 'readmodel_before', 'readmodel_shadow')
order by 1
"""
# Rows that a snapshot may still see are copied along.
_SEEN = """
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
_QUIET = """
select extract(epoch from clock_timestamp() - max(recorded_at))::float8 as seconds
from eventstore.events where stream_id = $1
"""
_PATIENCE_S = 20.0
_SIZE = "select pg_total_relation_size($1::regclass) as bytes"


class Erased(msgspec.Struct, frozen=True, kw_only=True):
    """A job whose text was taken away. events, files: that held any; 0 if it was erased before.

    damaged: keys of files that are no sound image any more, and may hold text still.
    """

    job_id: UUID
    version: int
    events: int
    files: int
    damaged: list[str]


class Scrubbed(msgspec.Struct, frozen=True, kw_only=True):
    """A table that was written anew. before, after: its size, with its indexes, in bytes."""

    table: str
    before: int
    after: int
    seconds: float


class Scrub(msgspec.Struct, frozen=True, kw_only=True):
    """What was written anew. problem: why older copies may stay in the server's write-ahead log; null if none do."""

    tables: list[Scrubbed]
    problem: str | None


def erase(args: argparse.Namespace, settings: Settings) -> int:
    """Erase the personal text of some jobs."""
    found: list[Erased] = []

    async def run(database: Database, store: ObjectStore) -> tuple[int, str]:
        log = Log(database)
        notifier = Notifier(database)
        committer = Committer(log, notifier)
        jobs = JobService(log, committer, actor())
        try:
            for job in args.jobs:
                try:
                    found.append(await _erase(database, store, jobs, job, settings.lease_s))
                except NoSuchJob as error:
                    return NOT_FOUND, str(error)
                except Refused as refusal:
                    return CONFLICT, f"job {job}: {refusal}"
                except Unreadable as error:
                    await jobs.report(error, "audit")
                    return UNAVAILABLE, f"{error}; it is being set aside, and can be erased then: try again"
        finally:
            await committer.stop()
            await notifier.stop()
        return OK, ""

    code, reason = ask_backends(settings, "audit", run)
    print_answer(args.output, found, _erased_table(found))
    if reason:
        return complain(code, reason)
    damaged = [key for one in found for key in one.damaged]
    return complain(FAILED, f"damaged, and may hold text: delete {', '.join(damaged)}") if damaged else OK


def scrub(args: argparse.Namespace, settings: Settings) -> int:
    """Write the tables anew that held personal text, and the embedded store's volumes."""

    async def run(database: Database, _store: ObjectStore) -> Scrub:
        seaweed = EmbeddedSeaweed.running(settings.home) if settings.s3_endpoint is None else None
        if seaweed is not None:
            await asyncio.to_thread(seaweed.compact)
        if await Rebuild(database).is_under_way():
            return Scrub(tables=[], problem="a rebuild is under way, and may hold the text: scrub when it has ended")
        rows = await database.read(_TABLES, _COMMANDS)
        if foreign := [row["name"] for row in rows if not row["own"]]:
            return Scrub(tables=[], problem=f"only their owner can write {', '.join(foreign)} anew: use its login")
        problem = await _until_unseen(database)
        tables = [await _rewrite(database, row["name"]) for row in rows]
        return Scrub(tables=tables, problem=problem or await _pass_on(database))

    found = ask_backends(settings, "audit", run)
    print_answer(args.output, found, _scrub_table(found))
    return FAILED if found.problem else OK


async def _erase(database: Database, store: ObjectStore, jobs: JobService, job: UUID, lease_s: float) -> Erased:
    # The event first: what it announces can be done again, what is gone without it could not be told from a loss.
    try:
        state = await jobs.load(job)
    except SetAside:
        keys, version = await _note_erasure(database, store, job, lease_s)
    else:
        if state.finished not in {None, "succeeded"}:  # else every object that can be written is
            await _until_written(database, job, lease_s)
        written = [artifact for step in state.steps for artifact in step.artifacts.values()]
        keys = await _keys(store, state.tenant, job, written)
        rewritten = () if state.erased or state.finished is None else await _rewritten(store, written)
        state = await jobs.request(state.tenant, job, RequestErasure(rewritten=rewritten), Meta(actor=actor()))
        version = state.version
    rows = await database.call("select eventstore.erase($1) as events", job)
    await database.call("select projector.forget($1)", job)
    for table in _COMMANDS:
        await database.call(_FORGET_TRACE.format(table), msgspec.json.encode({"job_id": job}).decode())
    files, damaged = 0, []
    for key in keys:
        try:
            anonymous = await _without_text(store, key)
        except (InvalidSource, ObjectChanged):
            damaged.append(key)
            continue
        if anonymous is not None:
            await store.replace(key, anonymous, content_type("jpg" if key.endswith(".jpg") else "png"))
            files += 1
    return Erased(job_id=job, version=version, events=rows[0]["events"], files=files, damaged=damaged)


async def _note_erasure(database: Database, store: ObjectStore, job: UUID, lease_s: float) -> tuple[list[str], int]:
    """Append the events of an erasure to a job that is set aside, by what can be read of it; its keys and version."""
    log = Log(database)
    history = await log.stream(job)
    tenant = history[0].tenant
    await _until_written(database, job, lease_s)
    bodies = [codec.body_if_readable(event) for event in history]
    written = {body.s3_key: body for body in bodies if isinstance(body, ArtifactEvent)}
    if all(event.code != JobErased.code for event in history):
        for body in [*await _rewritten(store, list(written.values())), JobErased(erased=list(PRIVATE))]:
            await append_unconditionally(log, job, "job", body, actor(), tenant=tenant)
    else:
        await log.confirm_replicated()
    newest = await log.newest(job)
    keys = await _keys(store, tenant, job, written.values())
    return keys, len(history) if newest is None else newest.version


async def _keys(store: ObjectStore, tenant: str, job: UUID, written: Iterable[ArtifactEvent]) -> list[str]:
    """The keys of a job's objects, those that no event names too: of attempts that were cut off between the two.

    Those that events name even if the store does not list them: after SIGKILLs, SeaweedFS was seen to serve an object
    that it did not list.
    """
    listed = await store.list_keys(object_prefix(tenant, job))
    return sorted({*listed, *(artifact.s3_key for artifact in written)})


async def _until_written(database: Database, job: UUID, lease_s: float) -> None:
    """Wait until a runner that was stopped can't be writing objects any more, for as long as it had its lease."""
    [ended] = await database.read(_QUIET, job)
    await asyncio.sleep(max(0.0, lease_s - ended["seconds"]))


async def _rewritten(store: ObjectStore, written: Sequence[ArtifactEvent]) -> list[ArtifactRewritten]:
    """What a job's files will be without personal text, those that hold some."""
    found = []
    for artifact in written:
        try:
            body = await store.get_verified(artifact.s3_key, StoredObject(artifact.bytes, artifact.sha256))
            anonymous = remove_private_text(body)
        except (InvalidSource, ObjectMissing, ObjectChanged):
            continue  # an event would make a foreign or damaged file the job's
        if anonymous == body:
            continue
        kept = {name: getattr(artifact, name) for name in ArtifactEvent.__struct_fields__}
        sha256 = hashlib.sha256(anonymous).hexdigest()
        found.append(ArtifactRewritten(**kept | {"bytes": len(anonymous), "sha256": sha256}))
    return found


async def _without_text(store: ObjectStore, key: str) -> bytes | None:
    """A file's bytes without personal text; None where it is gone, or holds none. Raises `InvalidSource`."""
    try:
        body = await store.get(key)
    except ObjectMissing:
        return None
    anonymous = remove_private_text(body)
    return None if anonymous == body else anonymous


async def _until_unseen(database: Database) -> str | None:
    """Wait for those who may still see what was erased; answers who stays."""
    [now] = await database.call("select pg_current_xact_id()::xid::text as xid")
    deadline = time.monotonic() + _PATIENCE_S
    while (who := (await database.read(_SEEN, now["xid"]))[0]["who"]) is not None:
        if time.monotonic() > deadline:
            return f"rows of before may have been copied for {who}: end it, and scrub again"
        await asyncio.sleep(0.2)
    return None


async def _rewrite(database: Database, table: str) -> Scrubbed:
    """VACUUM FULL copies what is there into a new file; a plain one leaves bytes of what was removed in the pages."""
    [before] = await database.read(_SIZE, table)
    began = time.monotonic()
    await database.call(f"vacuum (full, analyze) {table}")
    [after] = await database.read(_SIZE, table)
    return Scrubbed(table=table, before=before["bytes"], after=after["bytes"], seconds=time.monotonic() - began)


async def _pass_on(database: Database) -> str | None:
    """Let the server remove the log that it wrote until now; answers why it may not have."""
    try:
        await database.call("select pg_switch_wal()")
        await database.call("checkpoint")
        [recycled] = await database.read("select current_setting('wal_recycle')::boolean as recycled")
    except DatabaseRefused as error:
        return f"the write-ahead log stays until the server's next checkpoints: {error}"
    if recycled["recycled"]:
        return "the server keeps old segments of its write-ahead log for use again; set wal_recycle = off"
    return None


def _erased_table(found: Sequence[Erased]) -> Table:
    table = Table("JOB", "VERSION", "TEXTS ERASED", "FILES", box=None)
    for one in found:
        texts = str(one.events) if one.events else "none was left"
        table.add_row(str(one.job_id), str(one.version), texts, str(one.files))
    return table


def _scrub_table(found: Scrub) -> RenderableType:
    table = Table("TABLE", "BEFORE", "AFTER", "SECONDS", box=None)
    for one in found.tables:
        table.add_row(one.table, decimal(one.before), decimal(one.after), f"{one.seconds:.1f}")
    return table if found.problem is None else Group(table, "", found.problem)
