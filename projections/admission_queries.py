"""Counts of unfinished work, for admission control. All may raise `DatabaseUnavailable`."""

from eventstore.database import Database

# Events after the orchestrator's checkpoint count too: each may become a command, also while no orchestrator runs.
_WAITING_COMMANDS_SQL = """
select (select coalesce(sum(commands), 0) from eventstore.queue_lengths()) + (
    select coalesce(sum((
        select coalesce(max(e.position), 0) from eventstore.events e where e.partition = p
    ) - coalesce(s.position, 0)), 0)
    from eventstore.log
    cross join generate_series(0, partitions - 1) as p
    left join eventstore.standings s on s.subscription = 'orchestrator' and s.partition = p) as waiting
"""
# Open jobs in the read model, and jobs that were created or retried after the projector's checkpoint. Each part counts
# up to the limit only.
OPEN_JOBS_SQL = """
select (
    select count(*) from (
        select from readmodel.jobs where tenant = $1 and status in ('queued', 'running') limit $2) as seen
) + (
    select count(*) from (
        select distinct e.stream_id from eventstore.log
        cross join generate_series(0, partitions - 1) as p
        left join eventstore.standings s on s.subscription = 'readmodel' and s.partition = p
        -- By the key, and the newest thousand events: a stopped projector must not make this a scan of the log.
        cross join lateral (
            select e.tenant, e.code, e.stream_id from eventstore.events e
            where e.partition = p and e.position > coalesce(s.position, 0) order by e.position desc limit 1000
        ) as e
        where e.tenant = $1 and e.code in ('job.created', 'job.retry_requested') limit $2) as unseen
) as open
"""


async def count_waiting_commands(database: Database) -> int:
    """Commands in all queues, and events that the orchestrator has not handled."""
    return int((await database.read(_WAITING_COMMANDS_SQL))[0]["waiting"])


async def count_open_jobs(database: Database, tenant: str, limit: int) -> int:
    """A tenant's queued and running jobs. The number is exact below `limit` only."""
    return int((await database.read(OPEN_JOBS_SQL, tenant, limit))[0]["open"])
