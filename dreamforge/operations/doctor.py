"""`dreamforge doctor`: checks the database, the queues, the object store and the clocks, and gives advice."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Literal, NamedTuple

import msgspec

from artifacts.errors import ObjectStoreUnavailable
from artifacts.object_store import ObjectStore
from dreamforge.backends import actor, object_store, resolve_backends
from dreamforge.settings import Settings
from eventstore import schema
from eventstore.database import Database
from eventstore.errors import EventStoreError, Undecodable
from eventstore.events import RecordedEvent
from eventstore.log import Log
from orchestrator import codec
from orchestrator.quarantine_log import Quarantine
from orchestrator.reconciler import OutboxReconciler
from orchestrator.step_kinds import STEP_KINDS, select_queues
from projections.projector import SHADOW_SCHEMA
from projections.subscription_status import read_subscription_statuses

State = Literal["ok", "warning", "bad"]

_LONG_TRANSACTION = timedelta(minutes=5)
_MAX_LAG_S = 60.0
_MAX_SKEW_S = 2.0
_PROBE = "doctor/probe"

_SERVER = """
select current_setting('server_version') as version, current_setting('server_version_num')::int as number,
    current_setting('fsync') as fsync, current_setting('full_page_writes') as full_page_writes,
    current_setting('synchronous_commit') as synchronous_commit, current_setting('autovacuum') as autovacuum,
    current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int as most,
    (select count(*) from pg_stat_activity where backend_type = 'client backend') as used
"""
_LOGIN_RIGHTS = """
select current_user as login, r.rolsuper as super, pg_has_role(current_user, c.relowner, 'usage') as owner
from pg_roles r, pg_class c
where r.rolname = current_user and c.oid = 'eventstore.events'::regclass
"""
# What prevents VACUUM from removing dead rows: old snapshots, prepared transactions, inactive replication slots.
_SNAPSHOT_HOLDERS = """
select format('process %s (%s, %s)', pid, application_name, state) as holder, age(backend_xmin) as transactions,
    clock_timestamp() - xact_start as held
from pg_stat_activity where backend_xmin is not null and pid <> pg_backend_pid()
union all
select format('prepared transaction %s', gid), age(transaction), clock_timestamp() - prepared from pg_prepared_xacts
union all
select format('replication slot %s', slot_name), greatest(age(xmin), age(catalog_xmin)), interval '1 day'
from pg_replication_slots where not active and (xmin is not null or catalog_xmin is not null)
order by held desc nulls last limit 1
"""
_DEAD_ROWS = """
select format('%s.%s', schemaname, relname) as name, n_live_tup as live, n_dead_tup as dead
from pg_stat_user_tables
where schemaname in ('eventstore', 'readmodel', 'pgmq') and n_dead_tup > 50000 and n_dead_tup > 2 * n_live_tup
order by n_dead_tup desc
"""


class Outcome(NamedTuple):
    """What one check found. advice: what to do; empty if nothing."""

    state: State
    found: str
    advice: str = ""


class Finding(msgspec.Struct, frozen=True):
    """The outcome of one check, with its name."""

    check: str
    state: State
    found: str
    advice: str


Check = Callable[["DoctorContext"], Awaitable[Outcome]]


class DoctorContext(msgspec.Struct, frozen=True):
    """What the checks use. settings: without the addresses of embedded services."""

    settings: Settings
    database: Database
    store: ObjectStore


def examine(settings: Settings) -> list[Finding]:
    """Run every check. Raises `EmbeddedError` and `EventStoreError` if the home can't be used."""
    with resolve_backends(settings, store=True) as found:
        return asyncio.run(_examine(settings, found))


async def _examine(given: Settings, found: Settings) -> list[Finding]:
    pooled = found.db_pooler == "transaction"
    database = Database(found.db_url or "", pooled=pooled, role="dreamforge-doctor")
    store = object_store(found)
    context = DoctorContext(given, database, store)
    try:
        return [finding async for finding in _findings(context)]
    finally:
        await store.close()
        await database.close()


async def _findings(context: DoctorContext) -> AsyncIterator[Finding]:
    reached = await _run_check(context, "database", _server)
    yield reached
    if reached.state != "bad":
        for name, check in _DATABASE_CHECKS.items():
            yield await _run_check(context, name, check)
    yield await _run_check(context, "object store", _store)
    yield await _run_check(context, "object store's clock", _store_clock)


async def _run_check(context: DoctorContext, name: str, check: Check) -> Finding:
    try:
        outcome = await check(context)
    except (EventStoreError, ObjectStoreUnavailable) as error:
        outcome = Outcome("bad", str(error), "Mend that first; then look again.")
    return Finding(name, *outcome)


async def _server(context: DoctorContext) -> Outcome:
    [row] = await context.database.read(_SERVER)
    text = f"PostgreSQL {row['version']}, {row['used']} of {row['most']} connections in use"
    if row["number"] < 150000:
        return Outcome("bad", text, "Upgrade it: 15 is the oldest that is supported.")
    off = [setting for setting in ("fsync", "full_page_writes", "synchronous_commit") if row[setting] == "off"]
    if off:
        return Outcome(
            "bad",
            f"{text}; {', '.join(off)} off",
            "Turn it on: else a crash of the server loses events that were answered.",
        )
    if row["used"] > 0.8 * row["most"]:
        return Outcome(
            "warning",
            text,
            "Lower DF_DB_CONNECTIONS, raise max_connections, or put PgBouncer between (DF_DB_POOLER).",
        )
    if row["autovacuum"] == "off":
        return Outcome("warning", f"{text}; autovacuum off", "Turn autovacuum on.")
    return Outcome("ok", text)


async def _schema(context: DoctorContext) -> Outcome:
    await schema.check(context.database)
    return Outcome("ok", f"release {schema.RELEASE}")


async def _login(context: DoctorContext) -> Outcome:
    if context.settings.db_url is None:
        return Outcome("ok", "the home's own")
    [row] = await context.database.read(_LOGIN_RIGHTS)
    if not (row["super"] or row["owner"]):
        return Outcome("ok", row["login"])
    return Outcome(
        "warning",
        f"{row['login']} {'is a superuser' if row['super'] else 'owns the log'}",
        "Run the service with a login that was granted dreamforge_service, and no more.",
    )


async def _clocks(context: DoctorContext) -> Outcome:
    before = datetime.now(UTC)
    [row] = await context.database.read("select clock_timestamp() as now")
    after = datetime.now(UTC)
    # A time of the database between the two means no skew.
    skew = max(timedelta(0), before - row["now"], row["now"] - after).total_seconds()
    text = f"this machine and the database are {skew:.3f} s apart"
    if skew < _MAX_SKEW_S:
        return Outcome("ok", text)
    return Outcome("warning", text, "Let NTP set both: `ts` is the one, `as_of` the other.")


async def _queues(context: DoctorContext) -> Outcome:
    queues = await OutboxReconciler(context.database, actor()).status()
    missing = sum(queue.missing for queue in queues)
    text = ", ".join(
        f"{one.queue}: {one.visible} visible, {one.hidden} hidden, {one.missing} missing" for one in queues
    )
    if missing:
        return Outcome("bad", text, "Run `dreamforge outbox rebuild`.")
    return Outcome("ok", text)


async def _archived_commands(context: DoctorContext) -> Outcome:
    rows = await context.database.read(select_queues("count(*) as commands", "a"))
    commands = sum(row["commands"] for row in rows)
    if not commands:
        return Outcome("ok", "none")
    return Outcome(
        "warning",
        f"{commands} unreadable, in {' and '.join(f'pgmq.a_{step}' for step in STEP_KINDS)}",
        "A runner could not read them; `dreamforge outbox rebuild` sends pending commands again.",
    )


async def _quarantine(context: DoctorContext) -> Outcome:
    log = Log(context.database)
    jobs = [str(one.job_id) for one in await Quarantine(log, actor()).all() if one.state == "quarantined"]
    others = [
        f"{category} {stream}"
        for category in ("model", "key", "outbox", "anchor")
        for stream, history in (await log.category(category)).items()
        if any(codec.is_known(event.code, event.schema_version) and _is_broken(event) for event in history)
    ]
    if not (jobs or others):
        return Outcome("ok", "none")
    return Outcome(
        "warning",
        f"set aside or unreadable: {', '.join([*jobs, *others])}",
        "`dreamforge jobs quarantine list` tells of jobs; what else can't be read is left out.",
    )


def _is_broken(event: RecordedEvent) -> bool:
    try:
        codec.decode_event(event)
    except Undecodable:
        return True
    return False


async def _lag(context: DoctorContext) -> Outcome:
    # The shadow generation lags until it is swapped in.
    kept = [one for one in await read_subscription_statuses(context.database) if one.projection != SHADOW_SCHEMA]
    behind = [one for one in kept if (one.lag_s or 0) > _MAX_LAG_S]
    paused = sorted({one.projection for one in kept if one.paused_at is not None})
    if paused:
        return Outcome(
            "warning",
            f"{', '.join(paused)} is paused",
            "`dreamforge projections resume` lets it go on.",
        )
    if not behind:
        return Outcome("ok", f"nothing waits longer than {_MAX_LAG_S:g} s")
    worst = max(behind, key=lambda one: one.lag_s or 0)
    waiting = f"{worst.projection}, partition {worst.partition}: {worst.lag} event(s) wait, for {worst.lag_s:.0f} s"
    return Outcome(
        "bad",
        f"{waiting}; {len(behind)} place(s) in all",
        "Does its process run? Its /readyz and its log say why it is stalled.",
    )


async def _snapshots(context: DoctorContext) -> Outcome:
    rows = await context.database.read(_SNAPSHOT_HOLDERS)
    if not rows or rows[0]["held"] is None or rows[0]["held"] < _LONG_TRANSACTION:
        return Outcome("ok", f"none is older than {_LONG_TRANSACTION}")
    text = f"{rows[0]['holder']} for {str(rows[0]['held']).split('.')[0]}, {rows[0]['transactions']:,} transactions ago"
    return Outcome("warning", text, "End it: no dead row can be removed before that.")


async def _dead_rows(context: DoctorContext) -> Outcome:
    rows = await context.database.read(_DEAD_ROWS)
    if not rows:
        return Outcome("ok", "few")
    text = ", ".join(f"{row['name']}: {row['dead']:,} dead, {row['live']:,} live" for row in rows)
    advice = "Let autovacuum come by; if an old snapshot is held, end that first."
    return Outcome("warning", text, advice)


async def _store(context: DoctorContext) -> Outcome:
    await context.store.check_ready()
    # Writing artifacts relies on this: a second put must not overwrite the first.
    first = await context.store.put(_PROBE, b"first", "text/plain")
    second = await context.store.put(_PROBE, b"second", "text/plain")
    if first != second:
        return Outcome(
            "bad",
            "it lets an object be written over, although told not to (If-None-Match: *)",
            "Use a store, or a version of it, that honours conditional writes.",
        )
    return Outcome("ok", "reachable, and keeps what was written first")


async def _store_clock(context: DoctorContext) -> Outcome:
    before = datetime.now(UTC)
    store_time = await context.store.server_time()
    after = datetime.now(UTC)
    if store_time is None:
        return Outcome("ok", "it does not tell its time")
    # The store reports whole seconds.
    skew = max(timedelta(0), before - store_time - timedelta(seconds=1), store_time - after).total_seconds()
    text = f"this machine and the object store are {skew:.1f} s apart"
    if skew < _MAX_SKEW_S:
        return Outcome("ok", text)
    advice = "Let NTP set both: signed URLs expire early or late by that, and from 15 minutes on S3 refuses requests."
    return Outcome("warning", text, advice)


_DATABASE_CHECKS: dict[str, Check] = {
    "schema": _schema,
    "login": _login,
    "clocks": _clocks,
    "queues": _queues,
    "unreadable commands": _archived_commands,
    "unreadable events": _quarantine,
    "lag": _lag,
    "old snapshots": _snapshots,
    "dead rows": _dead_rows,
}
