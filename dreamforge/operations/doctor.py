"""`dreamforge doctor`: checks the database, the queues, the object store and the clocks, and gives advice."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Literal, NamedTuple

import msgspec

from artifacts.errors import ObjectStoreUnavailable
from artifacts.object_store import ObjectStore
from dreamforge.backends import create_object_store, resolve_backends, user_at_host
from dreamforge.settings import Settings
from eventstore import schema
from eventstore.database import Database
from eventstore.errors import EventStoreError, UndecodableEvent
from eventstore.events import RecordedEvent
from eventstore.log import Log
from orchestrator import codec
from orchestrator.quarantine_log import Quarantine
from orchestrator.reconciler import OutboxReconciler
from orchestrator.step_kinds import STEP_KINDS, all_queues_sql
from projections.projector import SHADOW_SCHEMA
from projections.subscription_status import read_subscription_statuses

FindingState = Literal["ok", "warning", "bad"]

_MAX_SNAPSHOT_AGE = timedelta(minutes=5)
_MAX_LAG_S = 60.0
_MAX_CLOCK_SKEW_S = 2.0
_PROBE_OBJECT_KEY = "doctor/probe"

_SERVER_SETTINGS_SQL = """
select current_setting('server_version') as version, current_setting('server_version_num')::int as number,
    current_setting('fsync') as fsync, current_setting('full_page_writes') as full_page_writes,
    current_setting('synchronous_commit') as synchronous_commit, current_setting('autovacuum') as autovacuum,
    current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int as most,
    (select count(*) from pg_stat_activity where backend_type = 'client backend') as used
"""
_LOGIN_RIGHTS_SQL = """
select current_user as login, r.rolsuper as super, pg_has_role(current_user, c.relowner, 'usage') as owner
from pg_roles r, pg_class c
where r.rolname = current_user and c.oid = 'eventstore.events'::regclass
"""
# What prevents VACUUM from removing dead rows: old snapshots, prepared transactions, inactive replication slots.
_SNAPSHOT_HOLDERS_SQL = """
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
_DEAD_ROWS_SQL = """
select format('%s.%s', schemaname, relname) as name, n_live_tup as live, n_dead_tup as dead
from pg_stat_user_tables
where schemaname in ('eventstore', 'readmodel', 'pgmq') and n_dead_tup > 50000 and n_dead_tup > 2 * n_live_tup
order by n_dead_tup desc
"""


class CheckOutcome(NamedTuple):
    """What one check found. advice: what to do; empty if nothing."""

    state: FindingState
    found: str
    advice: str = ""


class Finding(msgspec.Struct, frozen=True):
    """The outcome of one check, with its name."""

    check: str
    state: FindingState
    found: str
    advice: str


Check = Callable[["DoctorContext"], Awaitable[CheckOutcome]]


class DoctorContext(msgspec.Struct, frozen=True):
    """What the checks use. settings: without the addresses of embedded services."""

    settings: Settings
    database: Database
    store: ObjectStore


def run_checks(settings: Settings) -> list[Finding]:
    """Run every check. Raises `EmbeddedError` and `EventStoreError` if the home can't be used."""
    with resolve_backends(settings, with_store=True) as found:
        return asyncio.run(_run_checks(settings, found))


async def _run_checks(given_settings: Settings, resolved_settings: Settings) -> list[Finding]:
    pooled = resolved_settings.db_pooler == "transaction"
    database = Database(resolved_settings.db_url or "", pooled=pooled, application_name="dreamforge-doctor")
    store = create_object_store(resolved_settings)
    context = DoctorContext(given_settings, database, store)
    try:
        return [finding async for finding in _iterate_findings(context)]
    finally:
        await store.close()
        await database.close()


async def _iterate_findings(context: DoctorContext) -> AsyncIterator[Finding]:
    reached = await _run_check(context, "database", _check_server)
    yield reached
    if reached.state != "bad":
        for name, check in _DATABASE_CHECKS.items():
            yield await _run_check(context, name, check)
    yield await _run_check(context, "object store", _check_object_store)
    yield await _run_check(context, "object store's clock", _check_object_store_clock)


async def _run_check(context: DoctorContext, name: str, check: Check) -> Finding:
    try:
        outcome = await check(context)
    except (EventStoreError, ObjectStoreUnavailable) as error:
        outcome = CheckOutcome("bad", str(error), "Mend that first; then look again.")
    return Finding(name, *outcome)


async def _check_server(context: DoctorContext) -> CheckOutcome:
    [row] = await context.database.read(_SERVER_SETTINGS_SQL)
    text = f"PostgreSQL {row['version']}, {row['used']} of {row['most']} connections in use"
    if row["number"] < 150000:
        return CheckOutcome("bad", text, "Upgrade it: 15 is the oldest that is supported.")
    off = [setting for setting in ("fsync", "full_page_writes", "synchronous_commit") if row[setting] == "off"]
    if off:
        return CheckOutcome(
            "bad",
            f"{text}; {', '.join(off)} off",
            "Turn it on: else a crash of the server loses events that were answered.",
        )
    if row["used"] > 0.8 * row["most"]:
        return CheckOutcome(
            "warning", text, "Lower DF_DB_CONNECTIONS, raise max_connections, or put PgBouncer between (DF_DB_POOLER)."
        )
    if row["autovacuum"] == "off":
        return CheckOutcome("warning", f"{text}; autovacuum off", "Turn autovacuum on.")
    return CheckOutcome("ok", text)


async def _check_schema(context: DoctorContext) -> CheckOutcome:
    await schema.check_release(context.database)
    return CheckOutcome("ok", f"release {schema.RELEASE}")


async def _check_login(context: DoctorContext) -> CheckOutcome:
    if context.settings.db_url is None:
        return CheckOutcome("ok", "the home's own")
    [row] = await context.database.read(_LOGIN_RIGHTS_SQL)
    if not (row["super"] or row["owner"]):
        return CheckOutcome("ok", row["login"])
    return CheckOutcome(
        "warning",
        f"{row['login']} {'is a superuser' if row['super'] else 'owns the log'}",
        "Run the service with a login that was granted dreamforge_service, and no more.",
    )


async def _check_clocks(context: DoctorContext) -> CheckOutcome:
    before = datetime.now(UTC)
    [row] = await context.database.read("select clock_timestamp() as now")
    after = datetime.now(UTC)
    # A time of the database between the two means no skew.
    skew = max(timedelta(0), before - row["now"], row["now"] - after).total_seconds()
    text = f"this machine and the database are {skew:.3f} s apart"
    if skew < _MAX_CLOCK_SKEW_S:
        return CheckOutcome("ok", text)
    return CheckOutcome("warning", text, "Let NTP set both: `ts` is the one, `as_of` the other.")


async def _check_queues(context: DoctorContext) -> CheckOutcome:
    queues = await OutboxReconciler(context.database, user_at_host()).queue_statuses()
    missing = sum(queue.missing for queue in queues)
    text = ", ".join(
        f"{one.queue}: {one.visible} visible, {one.hidden} hidden, {one.missing} missing" for one in queues
    )
    if missing:
        return CheckOutcome("bad", text, "Run `dreamforge outbox rebuild`.")
    return CheckOutcome("ok", text)


async def _check_archived_commands(context: DoctorContext) -> CheckOutcome:
    rows = await context.database.read(all_queues_sql("count(*) as commands", "a"))
    commands = sum(row["commands"] for row in rows)
    if not commands:
        return CheckOutcome("ok", "none")
    return CheckOutcome(
        "warning",
        f"{commands} unreadable, in {' and '.join(f'pgmq.a_{step}' for step in STEP_KINDS)}",
        "A runner could not read them; `dreamforge outbox rebuild` sends pending commands again.",
    )


async def _check_quarantine(context: DoctorContext) -> CheckOutcome:
    log = Log(context.database)
    jobs = [
        str(one.job_id)
        for one in await Quarantine(log, user_at_host()).quarantined_jobs()
        if one.state == "quarantined"
    ]
    others = [
        f"{category} {stream}"
        for category in ("model", "key", "outbox", "anchor")
        for stream, history in (await log.read_category(category)).items()
        if any(codec.is_known(event.code, event.schema_version) and _is_undecodable(event) for event in history)
    ]
    if not (jobs or others):
        return CheckOutcome("ok", "none")
    return CheckOutcome(
        "warning",
        f"set aside or unreadable: {', '.join([*jobs, *others])}",
        "`dreamforge jobs quarantine list` tells of jobs; what else can't be read is left out.",
    )


def _is_undecodable(event: RecordedEvent) -> bool:
    try:
        codec.decode_event(event)
    except UndecodableEvent:
        return True
    return False


async def _check_lag(context: DoctorContext) -> CheckOutcome:
    # The shadow generation lags until it is swapped in.
    kept = [one for one in await read_subscription_statuses(context.database) if one.projection != SHADOW_SCHEMA]
    behind = [one for one in kept if (one.lag_s or 0) > _MAX_LAG_S]
    paused = sorted({one.projection for one in kept if one.paused_at is not None})
    if paused:
        return CheckOutcome(
            "warning", f"{', '.join(paused)} is paused", "`dreamforge projections resume` lets it go on."
        )
    if not behind:
        return CheckOutcome("ok", f"nothing waits longer than {_MAX_LAG_S:g} s")
    worst = max(behind, key=lambda one: one.lag_s or 0)
    waiting = f"{worst.projection}, partition {worst.partition}: {worst.lag} event(s) wait, for {worst.lag_s:.0f} s"
    return CheckOutcome(
        "bad",
        f"{waiting}; {len(behind)} place(s) in all",
        "Does its process run? Its /readyz and its log say why it is stalled.",
    )


async def _check_old_snapshots(context: DoctorContext) -> CheckOutcome:
    rows = await context.database.read(_SNAPSHOT_HOLDERS_SQL)
    if not rows or rows[0]["held"] is None or rows[0]["held"] < _MAX_SNAPSHOT_AGE:
        return CheckOutcome("ok", f"none is older than {_MAX_SNAPSHOT_AGE}")
    text = f"{rows[0]['holder']} for {str(rows[0]['held']).split('.')[0]}, {rows[0]['transactions']:,} transactions ago"
    return CheckOutcome("warning", text, "End it: no dead row can be removed before that.")


async def _check_dead_rows(context: DoctorContext) -> CheckOutcome:
    rows = await context.database.read(_DEAD_ROWS_SQL)
    if not rows:
        return CheckOutcome("ok", "few")
    text = ", ".join(f"{row['name']}: {row['dead']:,} dead, {row['live']:,} live" for row in rows)
    advice = "Let autovacuum come by; if an old snapshot is held, end that first."
    return CheckOutcome("warning", text, advice)


async def _check_object_store(context: DoctorContext) -> CheckOutcome:
    await context.store.check_ready()
    # Writing artifacts relies on this: a second put must not overwrite the first.
    first = await context.store.put(_PROBE_OBJECT_KEY, b"first", "text/plain")
    second = await context.store.put(_PROBE_OBJECT_KEY, b"second", "text/plain")
    if first != second:
        return CheckOutcome(
            "bad",
            "it lets an object be written over, although told not to (If-None-Match: *)",
            "Use a store, or a version of it, that honours conditional writes.",
        )
    return CheckOutcome("ok", "reachable, and keeps what was written first")


async def _check_object_store_clock(context: DoctorContext) -> CheckOutcome:
    before = datetime.now(UTC)
    store_time = await context.store.server_time()
    after = datetime.now(UTC)
    if store_time is None:
        return CheckOutcome("ok", "it does not tell its time")
    # The store reports whole seconds.
    skew = max(timedelta(0), before - store_time - timedelta(seconds=1), store_time - after).total_seconds()
    text = f"this machine and the object store are {skew:.1f} s apart"
    if skew < _MAX_CLOCK_SKEW_S:
        return CheckOutcome("ok", text)
    advice = "Let NTP set both: signed URLs expire early or late by that, and from 15 minutes on S3 refuses requests."
    return CheckOutcome("warning", text, advice)


_DATABASE_CHECKS: dict[str, Check] = {
    "schema": _check_schema,
    "login": _check_login,
    "clocks": _check_clocks,
    "queues": _check_queues,
    "unreadable commands": _check_archived_commands,
    "unreadable events": _check_quarantine,
    "lag": _check_lag,
    "old snapshots": _check_old_snapshots,
    "dead rows": _check_dead_rows,
}
