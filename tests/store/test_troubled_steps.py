"""What a runner does with steps that take too long, and while the object store is away."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import pytest
from msgspec.structs import replace

from artifacts.errors import ObjectStoreUnavailable
from artifacts.lineage import embed_lineage, read_lineage
from artifacts.object_store import ObjectStore, S3Config, StoredObject
from eventstore.ids import new_id
from eventstore.log import Append, Batch, Send
from eventstore.outbox import Outbox
from orchestrator import codec, step_command
from orchestrator.decisions import JobCommand as Decision
from orchestrator.decisions import RecordItems
from orchestrator.events import (
    ArtifactWritten,
    CancelRequested,
    DomainEvent,
    ErrorCode,
    Rendering,
    StepError,
    StepFinish,
    StepRetry,
    StepStart,
)
from orchestrator.service import JobService, UnreadableJob
from orchestrator.state import JobState, StepState
from orchestrator.step_command import StepClaim, StepCommand
from runners.fake_renderer import FakeRenderer
from runners.faults import FaultPlan
from runners.item_renderer import ItemRenderer
from runners.selection import SelectedEngine
from runners.steps import RetryPolicy, StepRunner
from runners.threads import UnboundedThreadExecutor
from tests.kit import Store, event, eventually, job_created

RENDERING = Rendering(engine="diffusers", device="cpu", dtype="float32", versions={}, batch_size=3, batch_index=1)


class Hanging(FakeRenderer):
    """Renders the first items, and hangs in another until it is let go."""

    def __init__(self, hangs_at: int) -> None:
        super().__init__(faults=FaultPlan(), max_pixels=1_000_000)
        self._hangs_at = hangs_at
        self.released = threading.Event()

    def render(self, job: JobState, step: str, index: int, source: bytes | None) -> bytes:
        if step == "generate" and index == self._hangs_at:
            self.released.wait(60)
        return super().render(job, step, index, source)


class Away(ObjectStore):
    """A store that is away for its first puts."""

    def __init__(self, config: S3Config, *, rejections: int) -> None:
        super().__init__(config)
        self.rejections = rejections

    async def put(self, key: str, body: bytes, content_type: str) -> StoredObject:
        if self.rejections > 0:
            self.rejections -= 1
            raise ObjectStoreUnavailable("the bucket can't be reached")
        return await super().put(key, body, content_type)


class Left(ObjectStore):
    """A store where an attempt, which nobody heard of, has left each picture as a model made it."""

    async def put(self, key: str, body: bytes, content_type: str) -> StoredObject:
        lineage = read_lineage(body)
        assert lineage is not None
        made = replace(lineage, generate=replace(lineage.generate, rendering=RENDERING))
        await super().put(key, embed_lineage(body, made), content_type)
        return await super().put(key, body, content_type)


class Unselectable(ItemRenderer):
    """Finds out what renders a step only after so many failures."""

    def __init__(self, *, failures: int) -> None:
        super().__init__(Hanging(-1), UnboundedThreadExecutor())
        self.failures = failures

    async def select(self, job: JobState, step: StepState) -> SelectedEngine:
        if self.failures > 0:
            self.failures -= 1
            raise KeyError("a bad row")
        return await super().select(job, step)


class Baffled(JobService):
    """Can't fold any history."""

    async def load(self, job_id: UUID, *, tenant: str | None = None) -> JobState:
        raise UnreadableJob(job_id, 1, KeyError(tenant))


class Undecided(JobService):
    """Can fold every history, and decides nothing."""

    async def execute(self, state: JobState, command: Decision, claim: StepClaim) -> tuple[JobState, list[DomainEvent]]:
        raise RuntimeError(state, command, claim)


class RestartedElsewhere(JobService):
    """Another begins the step anew, by a second message, before the first item is recorded."""

    async def execute(self, state: JobState, command: Decision, claim: StepClaim) -> tuple[JobState, list[DomainEvent]]:
        if isinstance(command, RecordItems) and command.attempt == 1:
            other = StepStart(step_id=command.step_id, step_name="generate", attempt=2, runner="other")
            append = Append(stream=state.job_id, category="job", expected=state.version, events=(event(other),))
            await self._log.commit(Batch(appends=[append]))
        return await super().execute(state, command, claim)


class Bench:
    """One job, of generate alone unless it has a scale, whose steps are run by hand, attempt by attempt."""

    def __init__(self, store: Store, objects: ObjectStore, count: int, scale: int | None = None) -> None:
        self._store = store
        self._objects = objects
        self._outbox = Outbox(store.database, ["generate", "upscale"], step_command.decode)
        self.job_id = new_id()
        self._created = job_created(scale=scale, count=count)

    async def submit(self) -> None:
        """Create the job and send its command."""
        step_id = self._created.steps[0].step_id
        command = StepCommand(job_id=self.job_id, step_id=step_id, step="generate", version=1)
        first = Append(stream=self.job_id, category="job", expected=0, events=(event(self._created),))
        sends = [Send(stream=self.job_id, queue="generate", message=command)]
        await self._store.log.commit(Batch(appends=[first], sends=sends))

    async def follow(self) -> None:
        """Send the upscale's command, as the orchestrator does after generate."""
        step_id = self._created.steps[1].step_id
        command = StepCommand(job_id=self.job_id, step_id=step_id, step="upscale", version=1)
        await self._store.log.commit(Batch(sends=[Send(stream=self.job_id, queue="upscale", message=command)]))

    def runner(
        self, item_renderer: ItemRenderer | FakeRenderer, jobs: type[JobService] = JobService, **policy: Any
    ) -> StepRunner:
        """A runner of steps. item_renderer: or what renders in one."""
        given: dict[str, Any] = {"max_attempts": 2, "first_delay_s": 0, "longest_delay_s": 0}
        return StepRunner(
            jobs(self._store.log, self._store.committer, "r"),
            self._objects,
            item_renderer
            if isinstance(item_renderer, ItemRenderer)
            else ItemRenderer(item_renderer, UnboundedThreadExecutor()),
            retry=RetryPolicy(**given | policy),
            name="r",
        )

    async def attempt(self, runner: StepRunner) -> None:
        """StepClaim the step's command and run it."""
        await runner.run(await eventually(self._claim, what="a claim"))

    async def _claim(self) -> Any:
        claims = await self._outbox.claim(1, 60)
        return claims[0] if claims else None

    async def bodies(self) -> list[DomainEvent]:
        """The job's events."""
        return [
            body
            for one in await self._store.log.read_stream(self.job_id)
            if (body := codec.decode_body(one)) is not None
        ]

    async def codes(self) -> list[str]:
        """Their codes."""
        return await self._store.codes(self.job_id)


@asynccontextmanager
async def bench(store: Store, objects: ObjectStore, count: int = 2, scale: int | None = None) -> AsyncIterator[Bench]:
    """A submitted job."""
    made = Bench(store, objects, count, scale)
    await made.submit()
    try:
        yield made
    finally:
        await objects.close()


async def test_an_attempt_out_of_time_keeps_what_it_wrote_and_is_tried_again(store: Store, s3_config: S3Config) -> None:
    """Given an engine that hangs in the second item, then the next attempt renders that one alone."""
    async with bench(store, ObjectStore(s3_config)) as work:
        hanging = Hanging(1)
        timeout_s = 1.0
        while "artifact.written" not in await work.codes():  # a machine may be too slow for the first item, too
            timeout_s *= 2
            await work.attempt(work.runner(hanging, timeout_s=timeout_s, max_attempts=100))
        retry = (await work.bodies())[-1]
        assert isinstance(retry, StepRetry)
        assert (retry.reason, retry.error_code) == ("failure", "timeout")
        assert f"longer than {timeout_s:g} s" in (retry.error_message or "")
        before = await work.codes()
        hanging.released.set()
        await work.attempt(work.runner(hanging))
        after = ["step.start", "model.selected", "artifact.written", "step.finish"]
        assert await work.codes() == [*before, *after]


async def test_a_step_that_always_hangs_fails_for_good(store: Store, s3_config: S3Config) -> None:
    """Given attempts that bring nothing, then the step fails as one that took too long."""
    async with bench(store, ObjectStore(s3_config)) as work:
        hanging = Hanging(0)
        for _ in range(2):
            await work.attempt(work.runner(hanging, timeout_s=0.2))
        error = (await work.bodies())[-2]
        assert isinstance(error, StepError)
        assert error.error_code == "timeout"
        assert (await work.codes()).count("step.start") == 2
        hanging.released.set()


async def test_a_step_that_never_starts_fails_for_good(store: Store, s3_config: S3Config) -> None:
    """Given failures before the start, then each is appended, and the last one ends the step and its command."""
    async with bench(store, ObjectStore(s3_config)) as work:
        runner = work.runner(Unselectable(failures=100))
        await work.attempt(runner)
        retry = (await work.bodies())[-1]
        assert isinstance(retry, StepRetry)
        assert (retry.reason, retry.attempt, retry.error_code) == ("not_started", 1, "internal")
        await work.attempt(runner)
        assert await work.codes() == ["job.created", "step.retry", "error", "step.finish"]
        assert await store.database.read("select * from pgmq.q_generate") == []


async def test_a_step_that_starts_at_last_is_run(store: Store, s3_config: S3Config) -> None:
    """Given one failure before the start, then the next attempt is the second, and succeeds."""
    async with bench(store, ObjectStore(s3_config)) as work:
        runner = work.runner(Unselectable(failures=1))
        for _ in range(2):
            await work.attempt(runner)
        assert (await work.codes())[1:3] == ["step.retry", "step.start"]
        finish = (await work.bodies())[-1]
        assert isinstance(finish, StepFinish)
        assert (finish.status, finish.attempt) == ("succeeded", 2)


@pytest.mark.parametrize(("jobs", "reason"), [(Baffled, "KeyError"), (Undecided, "RuntimeError")])
async def test_a_command_of_a_job_that_cannot_be_folded_is_given_back_and_not_lost(
    store: Store, s3_config: S3Config, jobs: type[JobService], reason: str
) -> None:
    """Given a history that breaks the fold, even with the error of an unknown step, or the rules, it is reported."""
    async with bench(store, ObjectStore(s3_config)) as work:
        await work.attempt(work.runner(Unselectable(failures=1), jobs, first_delay_s=600, longest_delay_s=600))
        assert await work.codes() == ["job.created"]
        held = await store.database.read(
            "select read_ct, vt > clock_timestamp() + interval '4 min' as late from pgmq.q_generate"
        )
        assert [(row["read_ct"], row["late"]) for row in held] == [(2, True)]
        reported = await store.database.read("select stream_id, reader, reason from eventstore.rejections")
        assert [tuple(row) for row in reported] == [(work.job_id, "runner", reason)]


async def test_an_outage_of_the_object_store_costs_no_attempt(store: Store, s3_config: S3Config) -> None:
    """Given a store that comes back, then the step goes on where it waited."""
    async with bench(store, Away(s3_config, rejections=4)) as work:
        await work.attempt(work.runner(Hanging(-1)))
        codes = await work.codes()
        assert codes.count("step.start") == 1
        assert codes[-1] == "step.finish"


@pytest.mark.parametrize("patience_s", [0.0, 0.3])
async def test_an_outage_that_lasts_fails_the_step_in_the_end(
    store: Store, s3_config: S3Config, patience_s: float
) -> None:
    """Given a store that stays away, then the step says why it failed."""
    async with bench(store, Away(s3_config, rejections=10_000)) as work:
        for _ in range(2):
            await work.attempt(work.runner(Hanging(-1), outage_s=patience_s))
        error = (await work.bodies())[-2]
        assert isinstance(error, StepError)
        wanted: ErrorCode = "infra_unavailable"
        assert error.error_code == wanted


async def test_a_cancel_is_heard_during_an_outage(store: Store, s3_config: S3Config) -> None:
    """Given a step that waits for the store, when its job is cancelled, then it ends."""
    async with bench(store, Away(s3_config, rejections=10_000)) as work:
        run = asyncio.create_task(work.attempt(work.runner(Hanging(-1))))
        await eventually(lambda: _reached(work, "step.start"), what="the start")
        version = len(await work.codes())
        cancel = Append(stream=work.job_id, category="job", expected=version, events=(event(CancelRequested()),))
        assert (await store.log.commit(Batch(appends=[cancel]))).streams[work.job_id].committed
        await run
        finish: Any = (await work.bodies())[-1]
        assert (finish.code, finish.status) == ("step.finish", "cancelled")


async def test_a_cancel_is_heard_while_nothing_happens(store: Store, s3_config: S3Config) -> None:
    """Given a step whose first item takes for ever, when its job is cancelled, then it ends all the same."""
    async with bench(store, ObjectStore(s3_config)) as work:
        hanging = Hanging(0)
        run = asyncio.create_task(work.attempt(work.runner(hanging)))
        await eventually(lambda: _reached(work, "model.selected"), what="the start")
        version = len(await work.codes())
        cancel = Append(stream=work.job_id, category="job", expected=version, events=(event(CancelRequested()),))
        assert (await store.log.commit(Batch(appends=[cancel]))).streams[work.job_id].committed
        await run
        finish: Any = (await work.bodies())[-1]
        assert (finish.code, finish.status) == ("step.finish", "cancelled")
        hanging.released.set()


async def test_how_an_earlier_attempt_made_a_picture_is_read_in_it(store: Store, s3_config: S3Config) -> None:
    """Given one that was stored, and made in another batch, before its runner died, then the log tells of that."""
    async with bench(store, Left(s3_config)) as work:
        await work.attempt(work.runner(Hanging(-1)))
        written = [body for body in await work.bodies() if isinstance(body, ArtifactWritten)]
        assert [one.rendering for one in written] == [RENDERING, RENDERING]


async def test_a_stop_is_heard_during_an_outage(store: Store, s3_config: S3Config) -> None:
    """Given a step that waits for the store, when its runner stops, then it is handed back and no attempt is lost."""
    async with bench(store, Away(s3_config, rejections=10_000)) as work:
        runner = work.runner(Hanging(-1))
        run = asyncio.create_task(work.attempt(runner))
        await eventually(lambda: _reached(work, "step.start"), what="the start")
        runner.stop()
        await run
        retry = (await work.bodies())[-1]
        assert isinstance(retry, StepRetry)
        assert retry.reason == "hand_back"


async def test_an_item_that_outlasts_the_grace_of_a_stop_costs_no_attempt(store: Store, s3_config: S3Config) -> None:
    """Given an item that takes longer than its runner may, again and again, then the step is handed back each time.

    Three deploys must not fail a job whose items are slow.
    """
    async with bench(store, ObjectStore(s3_config)) as work:
        hanging = Hanging(1)
        for begun in range(1, 5):
            runner = work.runner(hanging, max_attempts=2)
            run = asyncio.create_task(work.attempt(runner))
            await eventually(lambda begun=begun: _started(work, begun), what="the start")  # type: ignore[misc]
            if begun == 1:
                await eventually(lambda: _reached(work, "artifact.written"), what="the first item")
            runner.give_up()
            await run
            retry = (await work.bodies())[-1]
            assert isinstance(retry, StepRetry)
            assert retry.reason == "hand_back"
        hanging.released.set()
        await work.attempt(work.runner(hanging))
        codes = await work.codes()
        assert codes.count("artifact.written") == 2
        assert codes[-1] == "step.finish"


async def _started(work: Bench, times: int) -> bool:
    return (await work.codes()).count("step.start") == times


async def _reached(work: Bench, code: str) -> bool:
    return code in await work.codes()


async def test_a_run_that_is_fenced_off_writes_nothing_and_takes_its_message_away(
    store: Store, s3_config: S3Config
) -> None:
    """Given another run of the step by a second message, then this one ends, and can't come back to fence it off."""
    async with bench(store, ObjectStore(s3_config)) as work:
        await work.attempt(work.runner(Hanging(-1), RestartedElsewhere))
        assert await work.codes() == ["job.created", "step.start", "model.selected", "step.start"]
        assert await store.database.read("select * from pgmq.q_generate") == []
