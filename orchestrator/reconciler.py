"""Compares the queues with the log, and sends again the commands that are missing.

open jobs ─▶ fold each as far as it was reacted to ─▶ pending commands ─ those in the queues = those to send again
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime
from itertools import groupby
from typing import TypeVar
from uuid import UUID

import msgspec
import structlog

from eventstore.database import Database, Row
from eventstore.ids import derive_id
from eventstore.log import EVENT_COLUMNS, Batch, Log, Send, recorded_events
from orchestrator.copying import copied
from orchestrator.events import DomainEvent, OutboxPurged, OutboxRebuilt, StepName
from orchestrator.process_manager import Orchestrator
from orchestrator.quarantine import is_set_aside
from orchestrator.service import Unreadable, append_unconditionally, readable
from orchestrator.state import pending_step
from orchestrator.step_command import StepCommand
from orchestrator.step_kinds import STEP_KINDS, select_queues

T = TypeVar("T")

STREAM = derive_id(b"outbox")
"""The stream of what operators did to the queues."""

_log = structlog.get_logger(__name__)

_PAGE = 500
# A job that has ended has job.finish as its last event; whatever came after it opened the job again.
_OPEN = """
select stream_id from (
    select distinct on (stream_id) stream_id, code from eventstore.events
    where category = 'job' order by stream_id, version desc
) as newest where code <> 'job.finish'
"""
# As far as the orchestrator has come: what it has not seen yet, it will send by itself.
_REACTED = f"""
select {EVENT_COLUMNS} from eventstore.events
join (select partition as reached_partition, position as reached from eventstore.standings where subscription = $2) s
    on reached_partition = partition and position <= reached
where stream_id = any ($1::uuid[]) order by stream_id, version
"""  # noqa: S608  # constants
_HELD = "message ->> 'step_id' as step_id, vt <= clock_timestamp() as visible, enqueued_at"


class Missing(msgspec.Struct, frozen=True, kw_only=True):
    """A pending command that is in no queue. running: a runner may still work on it."""

    job_id: UUID
    step_id: UUID
    step: StepName
    version: int
    running: bool


class QueueStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One queue, compared with the log. hidden: claimed or deferred commands; idle: commands of no pending step."""

    queue: StepName
    visible: int
    hidden: int
    idle: int
    missing: int
    oldest: datetime | None


class OutboxReconciler:
    """Inspects and repairs the outbox. Every method may raise `DatabaseUnavailable`; each may be repeated.

    actor: the operator, kept in the events' meta.
    """

    def __init__(self, database: Database, actor: str) -> None:
        self._database = database
        self._log = Log(database)
        self._actor = actor

    async def status(self) -> list[QueueStatus]:
        """Compare each queue with the pending commands."""
        wanted, held = await self._compare_with_queues()
        steps = {str(one.step_id) for one in wanted}
        found = []
        for queue in STEP_KINDS:
            its_rows = [row for row in held if row["queue"] == queue]
            there = {row["step_id"] for row in its_rows}
            found.append(
                QueueStatus(
                    queue=queue,
                    visible=sum(row["visible"] for row in its_rows),
                    hidden=sum(not row["visible"] for row in its_rows),
                    idle=sum(row["step_id"] not in steps for row in its_rows),
                    missing=sum(one.step == queue and str(one.step_id) not in there for one in wanted),
                    oldest=min((row["enqueued_at"] for row in its_rows), default=None),
                )
            )
        return found

    async def missing(self) -> list[Missing]:
        """The pending commands that no queue holds."""
        wanted, held = await self._compare_with_queues()
        there = {row["step_id"] for row in held}
        return [one for one in wanted if str(one.step_id) not in there]

    async def rebuild(self, lease_s: float) -> list[Missing]:
        """Send the missing commands; returns them.

        Commands of running steps are shown after `lease_s` seconds: until then their runner may still be alive. A
        command that two rebuilds send at once is delivered twice, and what it causes happens once.
        """
        lost = await self.missing()
        if not lost:
            await self._log.confirm_replicated()
            return []
        await self._append(OutboxRebuilt(commands=_count_by_queue(one.step for one in lost)))
        for page in _pages(lost):
            await self._log.commit(Batch(sends=[_send(one, lease_s) for one in page]))
        return lost

    async def purge(self) -> dict[str, int]:
        """Delete every command, claimed ones too; returns how many, by queue."""
        rows = await self._database.read("select queue, commands from eventstore.queue_lengths()")
        commands = {row["queue"]: row["commands"] for row in rows}
        await self._append(OutboxPurged(commands=commands))
        purged = await self._database.execute_once("select queue, commands from eventstore.purge()")
        return {row["queue"]: row["commands"] for row in purged}

    async def _compare_with_queues(self) -> tuple[list[Missing], list[Row]]:
        """All pending commands, and all that the queues hold, as of one moment."""
        async with (
            self._database.connection() as connection,
            connection.transaction(isolation="repeatable_read", readonly=True),
        ):
            jobs = [row["stream_id"] for row in await connection.fetch(_OPEN)]
            wanted: list[Missing] = []
            unreadable: list[Unreadable] = []
            for page in _pages(jobs):
                rows = await connection.fetch(_REACTED, page, Orchestrator.name)
                wanted.extend(_pending(rows, unreadable))
            held = await connection.fetch(select_queues(_HELD))
        for error in unreadable:
            await self._log.report_rejection(error.job_id, "outbox", error.version, error.reason)
        return wanted, held

    async def _append(self, body: DomainEvent) -> None:
        await append_unconditionally(self._log, STREAM, "outbox", body, self._actor)


def _pending(rows: Sequence[Row], unreadable: list[Unreadable]) -> Iterable[Missing]:
    for job_id, group in groupby(recorded_events(rows), key=lambda event: event.stream_id):
        history = list(group)
        if is_set_aside(history):
            continue
        try:
            state = readable(history)
        except Unreadable as error:
            # Which command is pending cannot be told.
            _log.warning("unreadable job left out", job_id=str(job_id), error=str(error))
            unreadable.append(error)
            continue
        step = pending_step(state)
        if step is not None:
            yield Missing(
                job_id=job_id,
                step_id=step.step_id,
                step=step.name,
                version=state.version,
                running=step.status == "running",
            )


def _send(one: Missing, lease_s: float) -> Send:
    return Send(
        stream=one.job_id, queue=one.step, message=copied(one, StepCommand), delay=lease_s if one.running else 0.0
    )


def _pages(whole: Sequence[T]) -> Iterable[Sequence[T]]:
    return (whole[start : start + _PAGE] for start in range(0, len(whole), _PAGE))


def _count_by_queue(queues: Iterable[StepName]) -> dict[str, int]:
    return dict(sorted(Counter(queues).items()))
