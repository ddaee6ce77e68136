"""Reads what `dreamforge top` shows. The cost of its statements does not depend on the length of the log."""

from dreamforge.operations.snapshot import (
    WINDOW_LENGTH,
    DatabaseState,
    QueueCounts,
    RunningStep,
    Snapshot,
    WindowEvent,
    make_snapshot,
    previous_if_same_log,
    select_window_events,
    start_positions,
)
from eventstore.database import Database, DatabaseWithDeadline
from orchestrator.step_kinds import STEP_KINDS, all_queues_sql
from projections.subscription_status import read_subscription_statuses

_READ_TIMEOUT_S = 5.0
_MAX_RUNNING_STEPS = 1000

_HEADS_SQL = """
select clock_timestamp() as at, p as partition, coalesce(h.position, 0) as position
from eventstore.log
cross join generate_series(0, partitions - 1) as p
left join lateral (
    select position from eventstore.events e where e.partition = p order by position desc limit 1
) as h on true
"""
# Positions have no gaps, so the limit selects the events up to the head. It makes the planner use the primary key.
_EVENTS_SQL = """
select e.partition, e.position, e.recorded_at, e.code,
    case when e.code in ('step.finish', 'job.finish') then e.data ->> 'status' end as status,
    case when e.code in ('step.start', 'model.selected', 'artifact.written', 'step.retry', 'step.finish', 'error')
        then coalesce(e.data ->> 'runner', e.meta ->> 'actor') end as runner
from unnest($1::smallint[], $2::bigint[], $3::bigint[]) as s (partition, start, head)
cross join lateral (
    select * from eventstore.events e where e.partition = s.partition and e.position > s.start
    order by e.position limit s.head - s.start
) as e
where e.recorded_at > $4
"""
# Skips from tenant to tenant in the index of open and failed jobs, so that succeeded jobs are not read.
_JOBS_SQL = """
with recursive tenants as (
    (select tenant from readmodel.jobs where status <> 'succeeded' order by tenant limit 1)
    union all
    select (
        select j.tenant from readmodel.jobs j
        where j.status <> 'succeeded' and j.tenant > t.tenant order by j.tenant limit 1
    ) from tenants t where t.tenant is not null
)
select s.status, coalesce(sum(open.jobs), 0)::bigint as jobs
from (values ('queued'), ('running')) as s (status)
cross join tenants t
cross join lateral (
    select count(*) as jobs from readmodel.jobs j
    where j.tenant = t.tenant and j.status = s.status and j.status <> 'succeeded'
) as open
group by s.status
"""
_QUEUES_SQL = f"""
select queue, count(*) filter (where visible) as visible, count(*) filter (where not visible) as hidden,
    extract(epoch from clock_timestamp() - min(enqueued_at) filter (where visible))::float8 as oldest_s
from unnest($1::text[]) as q (queue)
left join ({all_queues_sql("vt <= clock_timestamp() as visible, enqueued_at")}) as held using (queue)
group by queue order by queue
"""  # noqa: S608  # constants
# A hidden command is claimed or deferred: the job's last runner event says which. Those that become visible first are
# read first, since leases are shorter than most deferrals. The `case`: an unreadable command has no valid job id.
_RUNNING_STEPS_SQL = f"""
select last.runner, last.recorded_at as heard_at
from (
    select message ->> 'job_id' as job_id from (
        select * from ({all_queues_sql("message, vt")}) as held where vt > clock_timestamp()
    ) as hidden group by 1 order by min(vt) limit $1
) as claimed
cross join lateral (
    select e.code, coalesce(e.data ->> 'runner', e.meta ->> 'actor') as runner, e.recorded_at
    from eventstore.events e
    where e.stream_id = case when job_id ~ '^[0-9a-f]{{8}}(-[0-9a-f]{{4}}){{3}}-[0-9a-f]{{12}}$' then job_id::uuid end
        and e.code in ('step.start', 'artifact.written', 'step.retry', 'step.finish')
    order by e.version desc limit 1
) as last
where last.code in ('step.start', 'artifact.written') and last.runner is not null
"""  # noqa: S608  # constants


class SnapshotReader:
    """Reads successive snapshots. A read may raise `EventStoreError`; the next one may succeed."""

    def __init__(self, database: Database) -> None:
        self._database = DatabaseWithDeadline(database, _READ_TIMEOUT_S)
        self._previous_state: DatabaseState | None = None

    async def next_snapshot(self) -> Snapshot:
        """Read the database, and compute a snapshot from this and the previous state."""
        after = await self._read_state()
        before, self._previous_state = self._previous_state, after
        return make_snapshot(before, after)

    async def _read_state(self) -> DatabaseState:
        rows = await self._database.read(_HEADS_SQL)
        at, heads = rows[0]["at"], {row["partition"]: row["position"] for row in rows}
        before = previous_if_same_log(self._previous_state, heads)
        starts = start_positions(heads, before)
        ranges = (list(heads), [starts[partition] for partition in heads], list(heads.values()))
        fresh = [WindowEvent(**row) for row in await self._database.read(_EVENTS_SQL, *ranges, at - WINDOW_LENGTH)]
        since, events = select_window_events(at, before, starts, fresh)
        return DatabaseState(
            at=at,
            heads=heads,
            since=since,
            events=events,
            open_jobs={row["status"]: row["jobs"] for row in await self._database.read(_JOBS_SQL)},
            queues=[QueueCounts(**row) for row in await self._database.read(_QUEUES_SQL, list(STEP_KINDS))],
            running=[RunningStep(**row) for row in await self._database.read(_RUNNING_STEPS_SQL, _MAX_RUNNING_STEPS)],
            subscription_statuses=await read_subscription_statuses(self._database),
        )
