"""Runs one claimed step: resumes at its first missing item, and ends it in the commit of its last.

fold ─▶ step.start ─▶ for each item without an artifact: render, put, artifact.written ─▶ step.finish + acknowledge
"""

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from typing import TypeVar
from uuid import UUID

import msgspec
import structlog

from artifacts.errors import ObjectChanged, ObjectMissing
from artifacts.object_store import ObjectStore
from eventstore.database import retry_until_available
from eventstore.errors import EventStoreError
from orchestrator.decisions import (
    FailAttempt,
    FailStart,
    HandBackStep,
    JobCommand,
    RecordItems,
    RecordProgress,
    StaleAttempt,
    StartStep,
)
from orchestrator.events import DomainEvent, StepFinish
from orchestrator.service import JobInQuarantine, JobService, NoSuchJob, UnreadableJob
from orchestrator.state import JobState, StepState
from orchestrator.step_command import StepClaim
from orchestrator.step_errors import OutOfTime, StepFailure, Unexpected, to_step_error
from runners import metrics
from runners.attempt import AttemptBuffer, AttemptFailure
from runners.item_renderer import ItemRenderer
from runners.selection import SelectedEngine
from runners.storing import MAX_UPLOADS, ImageStorage

T = TypeVar("T")

_STALE_CHECK_INTERVAL_S = 2.0
"""After such a silence an attempt looks whether it is wanted still: it may wait long behind others' batches."""

_RECENT_STATE_S = 5.0
"""How long a job's state is kept for the claim of its next step. In this time no other runner can have begun the step
that ended here: its lease is longer, even where a failover lost the end."""

_log = structlog.get_logger(__name__)


class RetryPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """How long to try. max_attempts: in a row without a new artifact. Times in seconds.

    Delays double from first to longest. timeout_s: of one attempt. outage_s: how long an attempt waits for an object
    store that is away, which costs no attempt.
    """

    max_attempts: int
    first_delay_s: float
    longest_delay_s: float
    timeout_s: float = 3600.0
    outage_s: float = 300.0

    def delay_s(self, attempts_without_progress: int) -> float:
        """Seconds before the next attempt, with jitter so that many failures don't come back as one."""
        ceiling = min(self.longest_delay_s, self.first_delay_s * 2.0 ** max(0, min(attempts_without_progress - 1, 20)))
        return round(ceiling * (0.5 + random.random() / 2), 3)  # noqa: S311  # jitter, no secret


class StepRunner:
    """Runs claimed steps for one process. name: of the runner, kept in step.start."""

    def __init__(
        self, jobs: JobService, store: ObjectStore, item_renderer: ItemRenderer, *, retry: RetryPolicy, name: str
    ) -> None:
        self._jobs = jobs
        self._item_renderer = item_renderer
        self._retry = retry
        self._name = name
        self._buffers: set[AttemptBuffer] = set()
        self._recent_states: dict[UUID, JobState] = {}
        self._stopping = asyncio.Event()
        self._storage = ImageStorage(jobs, store, item_renderer, outage_s=retry.outage_s, stopping=self._stopping)

    def stop(self) -> None:
        """Finish the items that are being rendered, and hand the rest back. A second call does nothing."""
        self._stopping.set()
        self._item_renderer.stop_accepting()

    def give_up(self) -> None:
        """Hand back what is still being rendered, too: that costs an item's work, and no attempt."""
        self._stopping.set()
        for buffer in self._buffers:
            buffer.give_up()

    async def run(self, claim: StepClaim) -> None:
        """Run a claimed step to its end, its hand-back or its failure; its message is settled with it."""
        withdraw_announcement = self._item_renderer.announce_request()
        try:
            await self._run_claim(claim, withdraw_announcement)
        except UnreadableJob as error:
            # Nothing can be decided on it: the command goes back, later each time, until the job is set aside.
            _log.exception("the job's history can't be read", job_id=str(claim.command.job_id))
            await self._jobs.report_unreadable(error, "runner")
            await self._jobs.settle(claim.defer(self._retry.delay_s(claim.read_ct)))
        finally:
            withdraw_announcement()

    async def _run_claim(self, claim: StepClaim, withdraw_announcement: Callable[[], None]) -> None:
        if self._stopping.is_set():
            await self._jobs.settle(claim.defer(0))
            return
        found = await self._load_claimed_step(claim)
        if found is None:
            return
        state, step = found
        log = _log.bind(**_log_fields(state, step.name))
        try:
            begun = await self._begin_attempt(state, step, claim)
        except StaleAttempt as error:
            # It was begun while we folded, perhaps under this very message by one who has lost it to us: then nobody
            # else will show it again.
            log.warning("another began the step first", error=str(error))
            return
        if begun is None:
            return
        started, selected = begun
        log.info("step started", attempt=started.step(step.step_id).attempt)
        try:
            await self._run_attempt(started, selected, claim, withdraw_announcement)
        except StaleAttempt as error:
            metrics.FENCED_ATTEMPTS.inc()
            log.warning("fenced off", error=str(error))
            # A message that another has claimed since bears another token, and stays; a duplicate goes, lest the two
            # fence each other off until the step fails.
            await self._jobs.settle(claim.ack())

    async def _load_claimed_step(self, claim: StepClaim) -> tuple[JobState, StepState] | None:
        """The claimed job and step; None for a command that can't be obeyed, which is settled."""
        job_id = claim.command.job_id
        try:
            state = self._take_recent_state(claim) or await self._jobs.load(job_id)
        except NoSuchJob as error:
            _log.warning("command without a job", job_id=str(job_id), error=str(error))
            await self._jobs.settle(claim.ack())
            return None
        except JobInQuarantine as error:
            _log.warning("command of a job that is set aside", job_id=str(job_id), error=str(error))
            await self._jobs.settle(claim.ack())
            return None
        try:
            return state, state.step(claim.command.step_id)
        except KeyError:
            _log.warning("command without a step", job_id=str(job_id), step_id=str(claim.command.step_id))
            await self._jobs.settle(claim.ack())
            return None

    def _keep_recent_state(self, state: JobState) -> None:
        self._recent_states[state.job_id] = state
        asyncio.get_running_loop().call_later(_RECENT_STATE_S, self._recent_states.pop, state.job_id, None)

    def _take_recent_state(self, claim: StepClaim) -> JobState | None:
        """The state in which this runner left the job, if the command was decided on it, and never claimed before."""
        state = self._recent_states.pop(claim.command.job_id, None)
        return state if state is not None and state.version == claim.command.version and claim.read_ct == 1 else None

    async def _begin_attempt(
        self, state: JobState, step: StepState, claim: StepClaim
    ) -> tuple[JobState, SelectedEngine] | None:
        """The state with the new attempt, and what renders it; None if it does not start. Raises `StaleAttempt`."""
        try:
            selected = await retry_until_available("selection", lambda: self._item_renderer.select(state, step))
            if time.monotonic() > claim.expires_at_s:
                _log.warning("claim is over before its step began", job_id=str(state.job_id), step=step.name)
                return None
            started = await self._append_start(state, step, selected, claim)
        except (StaleAttempt, EventStoreError):
            raise
        except Exception as error:  # noqa: BLE001  # whatever it was, it must count, or it would come back forever
            _log.exception("a step could not start", job_id=str(state.job_id), step=step.name)
            try:
                await self._fail_start(state, step, claim, to_step_error(error))
            except (StaleAttempt, EventStoreError):
                raise
            except Exception as broke:  # it can't count, so nobody else would ever hear of it
                raise UnreadableJob(state.job_id, state.version, broke) from broke
            return None
        return None if started is None else (started, selected)

    async def _fail_start(self, state: JobState, step: StepState, claim: StepClaim, cause: StepFailure) -> None:
        command = FailStart(
            step_id=step.step_id,
            claimed_attempt=step.attempt,
            error_code=cause.error_code,
            error_message=str(cause),
            retryable=cause.retryable,
            delay_s=self._retry.delay_s(step.attempts_without_progress + 1),
            max_attempts=self._retry.max_attempts,
        )
        _, bodies = await self._execute(state, command, claim)
        if not bodies:
            await self._jobs.settle(claim.ack())

    async def _append_start(
        self, state: JobState, step: StepState, selected: SelectedEngine, claim: StepClaim
    ) -> JobState | None:
        """The state with the new attempt; None if the step isn't pending, or ended instead of starting."""
        command = StartStep(
            step_id=step.step_id,
            claimed_attempt=step.attempt,
            runner=self._name,
            engine=selected.engine,
            source=selected.source,
            model_id=selected.model_id,
            model_sha256=None if selected.model is None else selected.model.sha256,
            max_attempts=self._retry.max_attempts,
        )
        state, bodies = await self._execute(state, command, claim)
        if not bodies:
            await self._jobs.settle(claim.ack())
            return None
        return None if _has_step_finish(bodies) else state

    async def _execute(
        self, state: JobState, command: JobCommand, claim: StepClaim
    ) -> tuple[JobState, list[DomainEvent]]:
        """As `JobService.execute`, and count the outcome."""
        state, bodies = await self._jobs.execute(state, command, claim)
        metrics.count_outcomes(bodies)
        return state, bodies

    async def _run_attempt(
        self, state: JobState, selected: SelectedEngine, claim: StepClaim, withdraw_announcement: Callable[[], None]
    ) -> None:
        """Produce the missing items, and record those that are stored, as many at once as there are by then."""
        step = state.step(claim.command.step_id)
        buffer = AttemptBuffer(step)
        self._buffers.add(buffer)
        producer = asyncio.create_task(
            self._produce_missing_items(state, step, selected, buffer, withdraw_announcement)
        )
        producer.add_done_callback(lambda _: buffer.close())
        timeout = OutOfTime(f"attempt {step.attempt} of step {step.name} took longer than {self._retry.timeout_s:g} s")
        timer = asyncio.get_running_loop().call_later(self._retry.timeout_s, buffer.give_up, timeout)
        try:
            while new_results := await buffer.next_batch(_STALE_CHECK_INTERVAL_S):
                command: JobCommand = RecordProgress(
                    step_id=step.step_id, attempt=step.attempt, progress_events=new_results.progress_events
                )
                if not (new_results.items or new_results.progress_events):
                    state = await self._jobs.load(state.job_id)
                if new_results.items:
                    command = RecordItems(
                        step_id=step.step_id,
                        attempt=step.attempt,
                        items=new_results.items,
                        progress_events=new_results.progress_events,
                    )
                state, bodies = await self._execute(state, command, claim)
                for finish in (body for body in bodies if isinstance(body, StepFinish)):
                    _log.info(f"step {finish.status}", attempt=step.attempt, **_log_fields(state, step.name))
                    self._keep_recent_state(state)
                    return
            if not buffer.given_up:
                with buffer.record_item_failure(None):
                    await producer
        finally:
            self._buffers.discard(buffer)
            timer.cancel()
            producer.cancel()
            await asyncio.gather(producer, return_exceptions=True)
        # An attempt that ends early for no reason is a bug, and counts: a hand-back would come back forever.
        failure = buffer.failure or AttemptFailure(None, Unexpected(RuntimeError()))
        if self._stopping.is_set() and (buffer.failure is None or failure.cause.retryable):
            await self._execute(state, HandBackStep(step_id=step.step_id, attempt=step.attempt), claim)
        else:
            await self._fail_attempt(state, claim, step, failure)

    async def _produce_missing_items(
        self,
        state: JobState,
        step: StepState,
        selected: SelectedEngine,
        buffer: AttemptBuffer,
        withdraw_announcement: Callable[[], None],
    ) -> None:
        """Render the missing items, as many at once as the engine likes, and store them.

        Ends early when the runner stops, or with the first item that fails; what was rendered before is stored.
        """
        at_once = self._item_renderer.max_items_at_once(selected)
        rendering = asyncio.Semaphore(at_once)
        places = asyncio.Semaphore(at_once - 1 + MAX_UPLOADS)
        items: list[asyncio.Task[None]] = []

        async def produce(index: int) -> None:
            with buffer.record_item_failure(index):
                try:
                    source = await self._storage.read_source(state, step, index)
                    rendered = await self._item_renderer.render(selected, state, step.name, index, source, buffer)
                finally:
                    rendering.release()
                buffer.add_item(await self._storage.put_image(state, step, index, rendered))
            places.release()

        try:
            with buffer.record_item_failure(None):
                await self._item_renderer.check_selected(selected)
            for index in range(state.generate.count):
                if step.has_item(index):
                    continue
                await places.acquire()
                await rendering.acquire()
                if self._stopping.is_set() or buffer.failure is not None:
                    break
                items.append(asyncio.create_task(produce(index)))
                # Comes after the tasks made until then have said what they want.
                asyncio.get_running_loop().call_soon(withdraw_announcement)
            await asyncio.gather(*items)
        finally:
            for item in items:
                item.cancel()

    async def _fail_attempt(self, state: JobState, claim: StepClaim, step: StepState, failure: AttemptFailure) -> None:
        _log.warning("step failed", **_log_fields(state, step.name), error=str(failure.cause))
        lost = (
            await self._storage.find_lost(state, step)
            if isinstance(failure.cause, ObjectMissing | ObjectChanged)
            else []
        )
        command = FailAttempt(
            step_id=step.step_id,
            attempt=step.attempt,
            error_code=failure.cause.error_code,
            error_message=str(failure.cause),
            item_index=failure.item_index,
            retryable=failure.cause.retryable,
            delay_s=self._retry.delay_s(state.step(step.step_id).attempts_without_progress),
            max_attempts=self._retry.max_attempts,
            lost=lost,
        )
        await self._execute(state, command, claim)


def _log_fields(state: JobState, step: str) -> dict[str, str]:
    """What a log line tells of the step that it is about."""
    fields = {"job_id": str(state.job_id), "step": step, "tenant": state.tenant}
    trace = (state.traceparent or "").split("-")[1:2]
    return fields | ({"trace_id": trace[0]} if trace else {})


def _has_step_finish(bodies: Sequence[DomainEvent]) -> bool:
    return any(isinstance(body, StepFinish) for body in bodies)
