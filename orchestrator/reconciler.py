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
from orchestrator.copying import copy_fields
from orchestrator.events import DomainEvent, OutboxPurged, OutboxRebuilt, StepName
from orchestrator.process_manager import Orchestrator
from orchestrator.quarantine import is_quarantined
from orchestrator.service import UnreadableJob, append_unconditionally, fold_history
from orchestrator.state import pending_step
from orchestrator.step_command import StepCommand
from orchestrator.step_kinds import STEP_KINDS, all_queues_sql

T = TypeVar("T")

OUTBOX_STREAM = derive_id(b"outbox")
"""The stream of what operators did to the queues."""

_log = structlog.get_logger(__name__)

_PAGE_SIZE = 500
# A job that has ended has job.finish as its last event; whatever came after it opened the job again.
_OPEN_JOBS_SQL = """
select stream_id from (
    select distinct on (stream_id) stream_id, code from eventstore.events
    where category = 'job' order by stream_id, version desc
) as newest where code <> 'job.finish'
"""
# As far as the orchestrator has come: what it has not seen yet, it will send by itself.
_REACTED_EVENTS_SQL = f"""
select {EVENT_COLUMNS} from eventstore.events
join (select partition as reached_partition, position as reached from eventstore.standings where subscription = $2) s
    on reached_partition = partition and position <= reached
where stream_id = any ($1::uuid[]) order by stream_id, version
"""  # noqa: S608  # constants
_HELD_COLUMNS_SQL = "message ->> 'step_id' as step_id, vt <= clock_timestamp() as visible, enqueued_at"


class PendingCommand(msgspec.Struct, frozen=True, kw_only=True):
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

    async def queue_statuses(self) -> list[QueueStatus]:
        """Compare each queue with the pending commands."""
        pending_commands, held_rows = await self._compare_with_queues()
        steps = {str(command.step_id) for command in pending_commands}
        found = []
        for queue in STEP_KINDS:
            its_rows = [row for row in held_rows if row["queue"] == queue]
            there = {row["step_id"] for row in its_rows}
            found.append(
                QueueStatus(
                    queue=queue,
                    visible=sum(row["visible"] for row in its_rows),
                    hidden=sum(not row["visible"] for row in its_rows),
                    idle=sum(row["step_id"] not in steps for row in its_rows),
                    missing=sum(
                        command.step == queue and str(command.step_id) not in there for command in pending_commands
                    ),
                    oldest=min((row["enqueued_at"] for row in its_rows), default=None),
                )
            )
        return found

    async def missing_commands(self) -> list[PendingCommand]:
        """The pending commands that no queue holds."""
        pending_commands, held_rows = await self._compare_with_queues()
        there = {row["step_id"] for row in held_rows}
        return [command for command in pending_commands if str(command.step_id) not in there]

    async def rebuild(self, lease_s: float) -> list[PendingCommand]:
        """Send the missing commands; returns them.

        Commands of running steps are shown after `lease_s` seconds: until then their runner may still be alive. A
        command that two rebuilds send at once is delivered twice, and what it causes happens once.
        """
        missing_commands = await self.missing_commands()
        if not missing_commands:
            await self._log.confirm_replicated()
            return []
        await self._append_event(OutboxRebuilt(commands=_count_by_queue(command.step for command in missing_commands)))
        for page in _split_into_pages(missing_commands):
            await self._log.commit(Batch(sends=[_pending_send(command, lease_s) for command in page]))
        return missing_commands

    async def purge(self) -> dict[str, int]:
        """Delete every command, claimed ones too; returns how many, by queue."""
        rows = await self._database.read("select queue, commands from eventstore.queue_lengths()")
        commands = {row["queue"]: row["commands"] for row in rows}
        await self._append_event(OutboxPurged(commands=commands))
        purged = await self._database.execute_once("select queue, commands from eventstore.purge()")
        return {row["queue"]: row["commands"] for row in purged}

    async def _compare_with_queues(self) -> tuple[list[PendingCommand], list[Row]]:
        """All pending commands, and all that the queues hold, as of one moment."""
        async with (
            self._database.connection() as connection,
            connection.transaction(isolation="repeatable_read", readonly=True),
        ):
            jobs = [row["stream_id"] for row in await connection.fetch(_OPEN_JOBS_SQL)]
            pending_commands: list[PendingCommand] = []
            unreadable: list[UnreadableJob] = []
            for page in _split_into_pages(jobs):
                rows = await connection.fetch(_REACTED_EVENTS_SQL, page, Orchestrator.name)
                pending_commands.extend(_pending_commands(rows, unreadable))
            held_rows = await connection.fetch(all_queues_sql(_HELD_COLUMNS_SQL))
        for error in unreadable:
            await self._log.report_rejection(error.job_id, "outbox", error.version, error.reason)
        return pending_commands, held_rows

    async def _append_event(self, body: DomainEvent) -> None:
        await append_unconditionally(self._log, OUTBOX_STREAM, "outbox", body, self._actor)


def _pending_commands(rows: Sequence[Row], unreadable: list[UnreadableJob]) -> Iterable[PendingCommand]:
    for job_id, group in groupby(recorded_events(rows), key=lambda event: event.stream_id):
        history = list(group)
        if is_quarantined(history):
            continue
        try:
            state = fold_history(history)
        except UnreadableJob as error:
            # Which command is pending cannot be told.
            _log.warning("unreadable job left out", job_id=str(job_id), error=str(error))
            unreadable.append(error)
            continue
        step = pending_step(state)
        if step is not None:
            yield PendingCommand(
                job_id=job_id,
                step_id=step.step_id,
                step=step.name,
                version=state.version,
                running=step.status == "running",
            )


def _pending_send(command: PendingCommand, lease_s: float) -> Send:
    return Send(
        stream=command.job_id,
        queue=command.step,
        message=copy_fields(command, StepCommand),
        delay=lease_s if command.running else 0.0,
    )


def _split_into_pages(whole: Sequence[T]) -> Iterable[Sequence[T]]:
    return (whole[start : start + _PAGE_SIZE] for start in range(0, len(whole), _PAGE_SIZE))


def _count_by_queue(queues: Iterable[StepName]) -> dict[str, int]:
    return dict(sorted(Counter(queues).items()))
