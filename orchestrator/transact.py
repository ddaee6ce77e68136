"""Fold, decide, append; and again when another came first."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import cast
from uuid import UUID

from eventstore import codec
from eventstore.committer import Committer, Transition
from eventstore.database import until_available
from eventstore.errors import EventStoreError
from eventstore.events import (
    Category,
    DecodedEvent,
    DomainEvent,
    EventRow,
    Meta,
    NewEvent,
    Private,
    StepFinish,
    StepRetry,
)
from eventstore.ids import new_id
from eventstore.log import OPERATOR_TENANT, Ack, Append, Batch, Defer, Log
from eventstore.outbox import Claim
from orchestrator.decisions import Command, Request, StaleAttempt, decide
from orchestrator.quarantine import is_set_aside
from orchestrator.state import JobState, apply


def event(body: DomainEvent, meta: Meta, *, private: Private | None = None) -> NewEvent:
    """An event that happens now."""
    return NewEvent(event_id=new_id(), ts=datetime.now(UTC), body=body, meta=meta, private=private)


async def note(
    log: Log, stream: UUID, category: Category, body: DomainEvent, actor: str, *, tenant: str = OPERATOR_TENANT
) -> None:
    """Append an event to a stream whatever its version and history, since nothing is decided on it."""
    noted = event(body, Meta(actor=actor))
    while True:
        newest = await log.newest(stream)
        expected = 0 if newest is None else newest.version
        append = Append(stream=stream, category=category, tenant=tenant, expected=expected, events=(noted,))
        if (await log.commit(Batch(appends=[append]))).streams[stream].committed:
            return


def append(
    state: JobState,
    bodies: Sequence[DomainEvent],
    actor: str,
    cause: Meta | None = None,
    private: Private | None = None,
) -> Append:
    """Events at the end of a job's stream; their meta names the request that caused them, and the actor.

    private: what the client said of itself, with the first of them.
    """
    cause = cause or state.cause
    meta = Meta(request_id=cause.request_id, actor=actor, key_id=cause.key_id)
    return Append(
        stream=state.job_id,
        tenant=state.tenant,
        expected=state.version,
        events=tuple(event(body, meta, private=None if number else private) for number, body in enumerate(bodies)),
    )


def extended(state: JobState, appended: Append) -> JobState:
    """The state after an append that the log accepted: no need to read it back."""
    for version, done in enumerate(appended.events, state.version + 1):
        decoded = DecodedEvent(
            stream_id=state.job_id,
            tenant=state.tenant,
            version=version,
            ts=done.ts,
            body=done.body,
            meta=done.meta,
            private=done.private or Private(),
        )
        state = apply(state, decoded)
    return state


class NoSuchJob(LookupError):
    """There is no history of such a job."""


class Unreadable(EventStoreError):
    """A job's history can't be read or folded by this release."""

    def __init__(self, job_id: UUID, version: int, cause: Exception) -> None:
        self.reason = str(cause) if isinstance(cause, EventStoreError) else type(cause).__name__
        super().__init__(f"the history of job {job_id} can't be read: {self.reason}")
        self.job_id = job_id
        self.version = version


class SetAside(StaleAttempt):
    """The job is set aside: nothing is decided on it until an operator releases it."""


class Jobs:
    """Decisions carried out on the log, by one process. actor: its name, kept in the events' meta."""

    def __init__(self, log: Log, committer: Committer, actor: str) -> None:
        self._log = log
        self._committer = committer
        self._actor = actor

    async def load(self, job_id: UUID, *, tenant: str | None = None) -> JobState:
        """The job as its history tells it. tenant: whose it must be; of any if not given.

        Waits while the database is away; raises `NoSuchJob`, `SetAside` and `Unreadable`.
        """
        history = await until_available("job", lambda: self._log.stream(job_id))
        if not history or history[0].category != "job" or tenant not in {None, history[0].tenant}:
            raise NoSuchJob(f"there is no job {job_id}" if tenant is None else f"tenant {tenant} has no job {job_id}")
        if is_set_aside(history):
            raise SetAside(
                f"The job is set aside, since its history can't be read ({job_id}); an operator can release it."
            )
        return readable(history)

    async def report(self, error: Unreadable, reader: str) -> None:
        """Let the orchestrator set a job aside that can't be read here."""
        await until_available(
            "report", lambda: self._log.report_rejection(error.job_id, reader, error.version, error.reason)
        )

    async def request(
        self, tenant: str, job_id: UUID, request: Request, cause: Meta, private: Private | None = None
    ) -> JobState:
        """Decide what somebody asks of a job, and append until the log accepts. Answers the state after it.

        cause: the request, kept in its events' meta. private: what its client calls it, until that is erased. Raises
        `Refused`, and what `load` does.
        """
        while True:
            state = await self.load(job_id, tenant=tenant)
            bodies = decide(state, request)
            if not bodies:
                await until_available("request", self._log.confirm_replicated)
                return state
            appended = append(state, bodies, self._actor, cause, private)
            answer = await self._committer.commit(Transition(append=appended))
            if answer.committed:
                return extended(state, appended)

    async def settle(self, settlement: Ack | Defer) -> None:
        """Acknowledge or defer a command that no event goes with. Waits while the database is away."""
        batch = Batch(defers=[settlement]) if isinstance(settlement, Defer) else Batch(acks=[settlement])
        await until_available("settle", lambda: self._log.commit(batch))

    async def carry_out(self, state: JobState, command: Command, claim: Claim) -> tuple[JobState, list[DomainEvent]]:
        """Decide and append until the log accepts, folding again after each conflict.

        Answers the state after it, and the events decided; where there are none nothing is written. The claimed
        message is settled in the commit of the event that ends the attempt. Raises `Refused` as `decide` does, each
        time on the newest state.
        """
        while True:
            bodies = decide(state, command)
            if not bodies:
                return state, []
            appended = append(state, bodies, self._actor)
            answer = await self._committer.commit(Transition(append=appended, settle=settlement(claim, bodies)))
            if answer.committed:
                return extended(state, appended), bodies
            state = await self.load(state.job_id)


def readable(history: Sequence[EventRow]) -> JobState:
    """The state after a history that begins; raises `Unreadable`, whatever it is that breaks."""
    state: JobState | None = None
    for one in history:
        try:
            state = apply(state, codec.decode_event(one))
        except Exception as error:  # a fold may break in any way on what it was not written for
            raise Unreadable(one.stream_id, one.version, error) from error
    return cast("JobState", state)


def settlement(claim: Claim, bodies: Sequence[DomainEvent]) -> Ack | Defer | None:
    """A finished step's command is acknowledged, a retried one deferred; while the step runs it is kept."""
    for body in bodies:
        if isinstance(body, StepFinish):
            return claim.ack()
        if isinstance(body, StepRetry):
            return claim.defer(body.delay_s)
    return None
