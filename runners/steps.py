"""Runs one claimed step: resumes at its first missing item, and ends it in the commit of its last.

fold ─▶ step.start ─▶ for each item without an artifact: render, put, artifact.written ─▶ step.finish + acknowledge
"""

import asyncio
import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from functools import partial

import msgspec
import structlog

from eventstore.events import ArtifactWritten, Body, StepFinish, StepRetry
from eventstore.ids import new_id
from eventstore.log import Ack, Defer
from eventstore.outbox import Claim
from orchestrator.decisions import FailAttempt, HandBack, RecordItems, StaleAttempt, StartStep
from orchestrator.plan import item_seed, object_key, output_size
from orchestrator.state import JobState, StepState
from orchestrator.transact import Jobs
from runners.encoding import content_type
from runners.errors import OutOfMemory, StepError, Unexpected
from runners.objects import ObjectStore
from runners.rendering import Renderer

_UPLOADS = 4
_log = structlog.get_logger(__name__)


class RetryPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """max_attempts: in a row without a new artifact. Delays in seconds, doubling from first to longest."""

    max_attempts: int
    first_delay_s: float
    longest_delay_s: float

    def delay(self, barren: int) -> float:
        """Seconds before the next attempt, with jitter so that many failures don't come back as one."""
        ceiling = min(self.longest_delay_s, self.first_delay_s * 2.0 ** max(0, min(barren - 1, 20)))
        return round(ceiling * (0.5 + random.random() / 2), 3)  # noqa: S311  # jitter, no secret


class StepRunner:
    """Runs claimed steps for one process. name: of the runner, kept in step.start."""

    def __init__(
        self, jobs: Jobs, store: ObjectStore, renderer: Renderer, *, executor: Executor, retry: RetryPolicy, name: str
    ) -> None:
        self._jobs = jobs
        self._store = store
        self._renderer = renderer
        self._executor = executor
        self._retry = retry
        self._name = name
        self._stopping = False

    def stop(self) -> None:
        """Finish the items that are being rendered, and hand the rest back. A second call does nothing."""
        self._stopping = True

    async def run(self, claim: Claim) -> None:
        """Run a claimed step to its end, its hand-back or its failure; its message is settled with it."""
        log = _log.bind(job_id=str(claim.command.job_id), step=claim.command.step)
        try:
            state = await self._jobs.load(claim.command.job_id)
        except LookupError as error:
            log.warning("command without a job", error=str(error))
            await self._jobs.settle(claim.ack())
            return
        started = await self._start(state, claim)
        if started is None:
            return
        attempt = started.step(claim.command.step_id).attempt
        log = log.bind(attempt=attempt)
        log.info("step started")
        try:
            await self._attempt(started, claim, attempt)
        except StaleAttempt as error:
            log.warning("fenced off", error=str(error))
        except _ItemFailed as failure:
            log.warning("step failed", item_index=failure.item_index, error=str(failure))
            await self._fail(started, claim, attempt, failure)

    async def _start(self, state: JobState, claim: Claim) -> JobState | None:
        """The state with the new attempt; None if the step isn't owed, or ended instead of starting."""
        command = StartStep(
            step_id=claim.command.step_id,
            runner=self._name,
            engine=self._renderer.engine.name,
            source=self._renderer.engine.source,
            model_id=None,
            max_attempts=self._retry.max_attempts,
        )
        state, bodies = await self._jobs.carry_out(state, command, _settle(claim))
        if not bodies:
            await self._jobs.settle(claim.ack())
            return None
        return None if _finish(bodies) else state

    async def _attempt(self, state: JobState, claim: Claim, attempt: int) -> None:
        """Produce the missing items, and record those that are stored, as many at once as there are by then."""
        step = state.step(claim.command.step_id)
        harvest = _Harvest()
        producer = asyncio.create_task(self._produce(state, step, harvest))
        try:
            while items := await harvest.take():
                command = RecordItems(step_id=step.step_id, attempt=attempt, items=items)
                state, bodies = await self._jobs.carry_out(state, command, _settle(claim))
                if _finish(bodies):
                    return
            await producer
        finally:
            producer.cancel()
            await asyncio.gather(producer, return_exceptions=True)
        await self._jobs.carry_out(state, HandBack(step_id=step.step_id, attempt=attempt), _settle(claim))

    async def _produce(self, state: JobState, step: StepState, harvest: "_Harvest") -> None:
        """Render the missing items one by one, storing a few at a time; ends early when the runner stops."""
        places = asyncio.Semaphore(_UPLOADS)

        async def put(index: int, body: bytes) -> None:
            try:
                with _item(index):
                    harvest.add(await self._put(state, step, index, body))
            finally:
                places.release()

        try:
            async with asyncio.TaskGroup() as uploads:
                for index in range(state.generate.count):
                    if index in step.artifacts:
                        continue
                    if self._stopping:
                        break
                    await places.acquire()
                    with _item(index):
                        body = await self._render(state, step, index)
                    uploads.create_task(put(index, body))
        except ExceptionGroup as group:
            # One item's failure ends the attempt; the others were cancelled with it.
            raise group.exceptions[0] from None
        finally:
            harvest.close()

    async def _render(self, state: JobState, step: StepState, index: int) -> bytes:
        loop = asyncio.get_running_loop()
        if step.name == "generate":
            return await loop.run_in_executor(self._executor, partial(self._renderer.generate, state, index))
        source = await self._store.get(state.steps[0].artifacts[index].s3_key)
        return await loop.run_in_executor(self._executor, partial(self._renderer.upscale, state, index, source))

    async def _put(self, state: JobState, step: StepState, index: int, body: bytes) -> ArtifactWritten:
        generate = state.generate
        seed = item_seed(generate.seed, generate.count, index)
        size = output_size(generate, state.upscale, step.name)
        if step.first_started_at is None:
            raise RuntimeError(f"step {step.name} of job {state.job_id} writes before it started")
        key = object_key(
            state.tenant, state.job_id, step.name, step.first_started_at, index, size, seed, generate.format
        )
        stored = await self._store.put(key, body, content_type(generate.format))
        return ArtifactWritten(
            step_id=step.step_id,
            step_name=step.name,
            attempt=step.attempt,
            item_index=index,
            artifact_id=new_id(),
            format=generate.format,
            width=size[0],
            height=size[1],
            seed=seed,
            s3_key=key,
            bytes=stored.size,
            sha256=stored.sha256,
        )

    async def _fail(self, state: JobState, claim: Claim, attempt: int, failure: "_ItemFailed") -> None:
        step = (await self._jobs.load(state.job_id)).step(claim.command.step_id)
        command = FailAttempt(
            step_id=step.step_id,
            attempt=attempt,
            error_code=failure.cause.error_code,
            error_message=str(failure),
            item_index=failure.item_index,
            retryable=failure.cause.retryable,
            delay_s=self._retry.delay(step.barren),
            max_attempts=self._retry.max_attempts,
        )
        try:
            await self._jobs.carry_out(state, command, _settle(claim))
        except StaleAttempt as stale:
            _log.warning("fenced off", job_id=str(state.job_id), error=str(stale))


def _settle(claim: Claim) -> Callable[[Sequence[Body]], Ack | Defer | None]:
    """A finished step's command is acknowledged, a retried one deferred, in the commit of the event that says so."""

    def settle(bodies: Sequence[Body]) -> Ack | Defer | None:
        for body in bodies:
            if isinstance(body, StepFinish):
                return claim.ack()
            if isinstance(body, StepRetry):
                return claim.defer(body.delay_s)
        return None

    return settle


def _finish(bodies: Sequence[Body]) -> bool:
    return any(isinstance(body, StepFinish) for body in bodies)


class _Harvest:
    """What an attempt has stored, and not yet told the log."""

    def __init__(self) -> None:
        self._items: list[ArtifactWritten] = []
        self._closed = False
        self._changed = asyncio.Event()

    def add(self, item: ArtifactWritten) -> None:
        self._items.append(item)
        self._changed.set()

    def close(self) -> None:
        self._closed = True
        self._changed.set()

    async def take(self) -> list[ArtifactWritten]:
        """Wait for items; none when there will be no more."""
        while not self._items and not self._closed:
            self._changed.clear()
            await self._changed.wait()
        items, self._items = self._items, []
        return items


class _ItemFailed(Exception):
    """An item's failure, on its way to the attempt that it ends."""

    def __init__(self, item_index: int, cause: StepError) -> None:
        super().__init__(str(cause))
        self.item_index = item_index
        self.cause = cause


@contextmanager
def _item(item_index: int) -> Iterator[None]:
    """Let a failure say which item it befell."""
    try:
        yield
    except StepError as error:
        raise _ItemFailed(item_index, error) from error
    except MemoryError as error:
        raise _ItemFailed(item_index, OutOfMemory("the image did not fit into the memory")) from error
    except Exception as error:
        _log.exception("an item broke", item_index=item_index)
        raise _ItemFailed(item_index, Unexpected(error)) from error
