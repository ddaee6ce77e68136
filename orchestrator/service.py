"""Loads a job from its history, decides, and appends the decision; repeats all three after a conflict."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import TypeVar, cast
from uuid import UUID

import structlog

from eventstore.committer import Committer, Transition
from eventstore.database import retry_until_available
from eventstore.errors import EventStoreError
from eventstore.events import EventRow, NewEvent, RecordedEvent
from eventstore.ids import new_id
from eventstore.log import OPERATOR_TENANT, Ack, Append, Batch, Defer, Log
from orchestrator import codec
from orchestrator.decisions import JobCommand, JobRequest, StaleAttempt, decide
from orchestrator.events import Category, DecodedEvent, DomainEvent, Meta, PersonalText, StepFinish, StepRetry
from orchestrator.quarantine import is_quarantined
from orchestrator.state import JobState, apply
from orchestrator.step_command import StepClaim

T = TypeVar("T")

_log = structlog.get_logger(__name__)


def make_event(body: DomainEvent, meta: Meta, *, private: PersonalText | None = None) -> NewEvent:
    """A new event with the current time."""
    return codec.new_event(new_id(), datetime.now(UTC), body, meta, private)


async def append_unconditionally(
    log: Log, stream: UUID, category: Category, body: DomainEvent, actor: str, *, tenant: str = OPERATOR_TENANT
) -> None:
    """Append an event at the end of a stream, whatever its version: nothing was decided on its history."""
    new_event = make_event(body, Meta(actor=actor))
    while True:
        newest = await log.newest_event(stream)
        expected = 0 if newest is None else newest.version
        append = Append(stream=stream, category=category, tenant=tenant, expected=expected, events=(new_event,))
        if (await log.commit(Batch(appends=[append]))).streams[stream].committed:
            return


def prepare_append(
    state: JobState,
    bodies: Sequence[DomainEvent],
    actor: str,
    cause: Meta | None = None,
    private: PersonalText | None = None,
) -> tuple[Append, JobState]:
    """An append of events to a job's stream, and the state after it. Their meta names the request, and the actor.

    cause: that request; the state's, if not given. private: the client's own identifiers, stored with the first event.
    """
    cause = cause or state.cause
    meta = Meta(request_id=cause.request_id, actor=actor, key_id=cause.key_id)
    texts = [private, *[None] * (len(bodies) - 1)]
    events = tuple(make_event(body, meta, private=text) for body, text in zip(bodies, texts, strict=True))
    appended = Append(stream=state.job_id, category="job", tenant=state.tenant, expected=state.version, events=events)
    for new, body, text in zip(events, bodies, texts, strict=True):
        state = apply(
            state,
            DecodedEvent(
                stream_id=state.job_id,
                tenant=state.tenant,
                version=state.version + 1,
                ts=new.ts,
                body=body,
                meta=meta,
                private=text or PersonalText(),
            ),
        )
    return appended, state


class NoSuchJob(LookupError):
    """There is no history of such a job."""


class UnreadableJob(EventStoreError):
    """A job's history can't be read or folded by this release."""

    def __init__(self, job_id: UUID, version: int, cause: Exception) -> None:
        self.reason = str(cause) if isinstance(cause, EventStoreError) else type(cause).__name__
        super().__init__(f"the history of job {job_id} can't be read: {self.reason}")
        self.job_id = job_id
        self.version = version


class JobInQuarantine(StaleAttempt):
    """The job is set aside: nothing is decided on it until an operator releases it."""


class JobService:
    """Executes requests and commands on jobs, for one process. actor: its name, kept in the events' meta."""

    def __init__(self, log: Log, committer: Committer, actor: str) -> None:
        self._log = log
        self._committer = committer
        self._actor = actor

    async def load(self, job_id: UUID, *, tenant: str | None = None) -> JobState:
        """The state of a job, folded from its history. tenant: the job must belong to it, if given.

        Waits while the database is away; raises `NoSuchJob`, `JobInQuarantine` and `UnreadableJob`.
        """
        history = await retry_until_available("job", lambda: self._log.read_stream(job_id))
        if not history or history[0].category != "job" or tenant not in {None, history[0].tenant}:
            raise NoSuchJob(f"there is no job {job_id}" if tenant is None else f"tenant {tenant} has no job {job_id}")
        if is_quarantined(history):
            raise JobInQuarantine(
                f"The job is set aside, since its history can't be read ({job_id}); an operator can release it."
            )
        return fold_history(history)

    async def report_unreadable(self, error: UnreadableJob, reader: str) -> None:
        """Report a job that can't be read here to the orchestrator, which sets it aside."""
        await retry_until_available(
            "report", lambda: self._log.report_rejection(error.job_id, reader, error.version, error.reason)
        )

    async def commit_request(
        self, tenant: str, job_id: UUID, request: JobRequest, cause: Meta, private: PersonalText | None = None
    ) -> JobState:
        """Decide a request on a job, and append the decision until it is committed. Returns the state after it.

        cause: the request, kept in its events' meta. private: what its client calls it, until that is erased. Raises
        `CommandRejected`, and what `load` does.
        """
        while True:
            state = await self.load(job_id, tenant=tenant)
            bodies = decide(state, request)
            if not bodies:
                await retry_until_available("request", self._log.confirm_replicated)
                return state
            appended, after = prepare_append(state, bodies, self._actor, cause, private)
            answer = await self._committer.commit(Transition(append=appended))
            if answer.committed:
                return after

    async def settle(self, settlement: Ack | Defer) -> None:
        """Acknowledge or defer a command without an event. Waits while the database is away."""
        batch = Batch(defers=[settlement]) if isinstance(settlement, Defer) else Batch(acks=[settlement])
        await retry_until_available("settle", lambda: self._log.commit(batch))

    async def execute(
        self, state: JobState, command: JobCommand, claim: StepClaim
    ) -> tuple[JobState, list[DomainEvent]]:
        """Decide a command, and append the decision until it is committed, loading the job again after each conflict.

        Returns the state after it and the appended events. The claimed message is settled in the commit of the event
        that ends the attempt. Raises `CommandRejected` as `decide` does, on the newest state.
        """
        while True:
            bodies = decide(state, command)
            if not bodies:
                return state, []
            appended, after = prepare_append(state, bodies, self._actor)
            answer = await self._committer.commit(Transition(append=appended, settle=settlement(claim, bodies)))
            if answer.committed:
                return after, bodies
            state = await self.load(state.job_id)


def fold_history(history: Sequence[EventRow]) -> JobState:
    """The state after a history that begins; raises `UnreadableJob`, whatever it is that breaks."""
    state: JobState | None = None
    for one in history:
        try:
            state = apply(state, codec.decode_event(one))
        except Exception as error:  # a fold may break in any way on what it was not written for
            raise UnreadableJob(one.stream_id, one.version, error) from error
    return cast("JobState", state)


def fold_or_none(evolve: Callable[[T | None, DecodedEvent], T | None], history: Sequence[RecordedEvent]) -> T | None:
    """The state after a history; None, with a log line, if the history can't be read."""
    try:
        return codec.fold(evolve, map(codec.decode_event, history))
    except Exception as error:  # noqa: BLE001  # a fold may raise anything on unexpected data
        first = history[0]
        _log.warning("history unreadable", category=first.category, stream=str(first.stream_id), error=str(error))
        return None


def settlement(claim: StepClaim, bodies: Sequence[DomainEvent]) -> Ack | Defer | None:
    """A finished step's command is acknowledged, a retried one deferred; while the step runs it is kept."""
    for body in bodies:
        if isinstance(body, StepFinish):
            return claim.ack()
        if isinstance(body, StepRetry):
            return claim.defer(body.delay_s)
    return None
