"""A counterpart of `runners.consumer` and `runners.steps`: the same effects in the same order, without threads."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from artifacts.errors import ObjectChanged, ObjectMissing, ObjectStoreUnavailable
from eventstore.errors import DatabaseUnavailable
from orchestrator.decisions import (
    FailAttempt,
    FailStart,
    HandBackStep,
    JobCommand,
    RecordItems,
    StaleAttempt,
    StartStep,
)
from orchestrator.events import ArtifactWritten, DomainEvent, StepFinish
from orchestrator.plan import item_seed, output_size
from orchestrator.service import JobService
from orchestrator.state import JobState, StepState
from orchestrator.step_command import StepClaim
from orchestrator.step_errors import OutOfTime, ProviderError, StepFailure
from tests.kit import NOON
from tests.simulation.connection import SimulatedCommitter, jobs
from tests.simulation.effects import Actor, Effect
from tests.simulation.invariants import MAX_ATTEMPTS, Auditor, planned_key
from tests.simulation.process import Process
from tests.simulation.storage import Message
from tests.simulation.world import World

SLOTS = 2
LEASE_S = 6.0
UNAVAILABLE = DatabaseUnavailable("simulated")


class AttemptBuffer:
    """The stored items of an attempt that are not yet committed, and its first failure, which ends it."""

    def __init__(self) -> None:
        self.items: list[ArtifactWritten] = []
        self.closed = False
        self.given_up = False
        self.failure: tuple[int | None, StepFailure] | None = None

    def next_batch(self) -> Effect[list[ArtifactWritten]]:
        """Wait for items. An empty list means that there will be no more."""
        return Effect("buffer", self._next_batch, ready=lambda: bool(self.items) or self.closed)

    def give_up(self, cause: StepFailure) -> None:
        """End the attempt now."""
        self.given_up = True
        self.failure = self.failure or (None, cause)
        self.closed = True

    @contextmanager
    def item(self, item_index: int) -> Iterator[None]:
        """Record the first failure of an item."""
        try:
            yield
        except StepFailure as error:
            self.failure = self.failure or (item_index, error)

    def _next_batch(self) -> list[ArtifactWritten]:
        items, self.items = self.items, []
        return items


class Run:
    """A claim and its actors."""

    def __init__(self, name: str, claim: StepClaim, jobs: JobService) -> None:
        self.name = name
        self.claim = claim
        self.jobs = jobs
        self.buffer = AttemptBuffer()
        self.main: Actor | None = None
        self.producer: Actor | None = None

    @property
    def runnable(self) -> list[Actor]:
        """Its actors that can be picked."""
        return [actor for actor in (self.main, self.producer) if actor is not None and actor.runnable]


class Runner(Process):
    """A runner with two slots. Each run has its own name, so that events show which run appended them."""

    def __init__(self, world: World, name: str, committer: SimulatedCommitter, auditor: Auditor) -> None:
        super().__init__(world, name)
        self._committer = committer
        self._auditor = auditor
        self._numbers = 0
        self._begin()

    def _begin(self) -> None:
        self.runs: list[Run] = []
        self._claiming: Actor | None = None
        self._beating: Actor | None = None
        self._next_beat = self.world.now
        self._stragglers: list[Actor] = []
        self._stopping = False

    @property
    def idle(self) -> bool:
        """Whether it has no work in progress."""
        return not self.runs and not self._stragglers and self._claiming is None

    def crash(self) -> None:
        """Crash and restart."""
        for actor in self._actors():
            actor.crash()
        self._begin()

    def stop(self) -> None:
        """Finish the items in progress, hand back the rest, and restart."""
        self._stopping = True

    def give_up(self) -> None:
        """Let an attempt time out."""
        if self.runs:
            self.world.dice.choice(self.runs).buffer.give_up(OutOfTime("simulated"))

    # The consumer ---------------------------------------------------------------------------------

    def _step(self) -> bool:
        if self._beating is not None or (self.runs and self.world.now >= self._next_beat and self._happens(0.5)):
            self._beat()
            return True
        choices = [actor for run in self.runs for actor in run.runnable] + self._stragglers
        if self._may_claim():
            choices.append(self._claim())
        if not choices:
            if self._stopping and self.idle:
                self._begin()
            return False
        actor = self.world.dice.choice(choices)
        self.advance(actor, "runner")
        self._tidy()
        return True

    def _actors(self) -> Iterable[Actor]:
        yield from self._stragglers
        yield from (actor for actor in (self._claiming, self._beating) if actor is not None)
        for run in self.runs:
            yield from (actor for actor in (run.main, run.producer) if actor is not None)

    def _happens(self, probability: float) -> bool:
        return self.world.dice.random() < probability

    def _may_claim(self) -> bool:
        if self._claiming is not None:
            return True
        return not self._stopping and len(self.runs) < SLOTS and self.world.storage.claimable(self.world.now)

    def _claim(self) -> Actor:
        if self._claiming is None:
            self._claiming = Actor(self._fill())
        return self._claiming

    async def _fill(self) -> None:
        free = SLOTS - len(self.runs)
        expires = self.world.now + LEASE_S
        storage, world = self.world.storage, self.world
        try:
            found = await Effect("claim", lambda: storage.claim(free, world.now, LEASE_S), failure=UNAVAILABLE)
        except DatabaseUnavailable:
            return
        for message in found:
            self._numbers += 1
            name = f"{self.name}/{self._numbers}"
            claim = claim_of(message, expires)
            run = Run(name, claim, jobs(self.world.storage, self._committer, self.world.clock, name))
            run.main = Actor(self._run(run))
            self.runs.append(run)

    def _beat(self) -> None:
        if self._beating is None:
            self._beating = Actor(self._extend())
        self.advance(self._beating, "heartbeat")
        if self._beating.done:
            self._beating = None

    async def _extend(self) -> None:
        self._next_beat = self.world.now + LEASE_S / 3
        held = list(self.runs)
        tokens = [run.claim.ack() for run in held]
        storage, world = self.world.storage, self.world
        forgotten = world.chance(0.02)

        def extend() -> list[bool]:
            return storage.extend(tokens, world.now, LEASE_S, forgotten=forgotten)

        try:
            kept = await Effect("extend", extend, failure=UNAVAILABLE)
        except DatabaseUnavailable:
            return
        for run, still in zip(held, kept, strict=True):
            if not still and run in self.runs and not self._settled(run):
                self.world.counts["leases lost"] += 1
                self._drop(run)

    def _settled(self, run: Run) -> bool:
        """Whether a run has settled its message and is about to end: its lease is not lost."""
        return run.main is None or run.main.last == "commit"

    def _drop(self, run: Run) -> None:
        if run.main is not None:
            run.main.crash()
        self._leave(run)
        self.runs.remove(run)

    def _leave(self, run: Run) -> None:
        """Stop rendering. A put in a thread cannot be stopped: it may be done later."""
        if run.producer is None:
            return
        if not run.producer.done and run.producer.last != "start" and self._happens(0.5):
            self._stragglers.append(run.producer)
        else:
            run.producer.crash()
        run.producer = None

    def _tidy(self) -> None:
        if self._claiming is not None and self._claiming.done:
            self._claiming = None
        for run in [run for run in self.runs if run.main is None or run.main.done]:
            self._leave(run)
            self.runs.remove(run)
        for straggler in [one for one in self._stragglers if one.done or one.last == "put"]:
            straggler.crash()
            self._stragglers.remove(straggler)

    # The step runner ------------------------------------------------------------------------------

    async def _run(self, run: Run) -> None:
        claim, jobs = run.claim, run.jobs
        if self._stopping:
            await jobs.settle(claim.defer(0))
            return
        state = await jobs.load(claim.command.job_id)
        step = state.step(claim.command.step_id)
        if self.world.now > claim.expires_at_s:
            return
        await Effect("looked at its clock", lambda: None)  # it may freeze here, and start after its lease has ended
        try:
            if self.world.chance(0.03):
                await self._fail_start(run, state, step)
                return
            started = await self._start(run, state, step)
        except StaleAttempt:
            await self._fenced_at_start(run)
            return
        if started is None:
            return
        try:
            await self._attempt(run, started)
        except StaleAttempt:
            self.world.counts["fenced off"] += 1
            await jobs.settle(claim.ack())

    async def _fenced_at_start(self, run: Run) -> None:
        """Keep the message: the other runner may have lost its own, so this one may be the last."""
        self.world.record(run.name, "was not the first to start")
        self.world.counts["late starts"] += 1

    async def _start(self, run: Run, state: JobState, step: StepState) -> JobState | None:
        command = StartStep(
            step_id=step.step_id,
            claimed_attempt=step.attempt,
            runner=run.name,
            engine="fake",
            source="fake",
            model_id=None,
            max_attempts=MAX_ATTEMPTS,
        )
        state, bodies = await self._execute(run, state, command)
        if not bodies:
            await run.jobs.settle(run.claim.ack())
            return None
        return None if finishes(bodies) else state

    async def _fail_start(self, run: Run, state: JobState, step: StepState) -> None:
        """Fail between the claim and the step's start."""
        self.world.counts["failed starts"] += 1
        command = FailStart(
            step_id=step.step_id,
            claimed_attempt=step.attempt,
            error_code="internal",
            error_message="simulated",
            retryable=True,
            delay_s=self.world.dice.uniform(0.5, 4.0),
            max_attempts=MAX_ATTEMPTS,
        )
        _, bodies = await self._execute(run, state, command)
        if not bodies:
            await run.jobs.settle(run.claim.ack())

    async def _execute(self, run: Run, state: JobState, command: JobCommand) -> tuple[JobState, list[DomainEvent]]:
        return await run.jobs.execute(state, command, run.claim)

    async def _attempt(self, run: Run, state: JobState) -> None:
        step = state.step(run.claim.command.step_id)
        buffer = run.buffer
        run.producer = Actor(self._produce(run, state, step))
        while items := await buffer.next_batch():
            command = RecordItems(step_id=step.step_id, attempt=step.attempt, items=items)
            state, bodies = await self._execute(run, state, command)
            if finishes(bodies):
                return
        self._leave(run)
        if buffer.failure is None or (self._stopping and buffer.failure[1].retryable):
            self.world.counts["hand-backs"] += 1
            await self._execute(run, state, HandBackStep(step_id=step.step_id, attempt=step.attempt))
        else:
            await self._fail(run, state, step, *buffer.failure)

    def _missing(self, state: JobState, step: StepState) -> Sequence[int]:
        return [index for index in range(state.generate.count) if not step.has_item(index)]

    async def _produce(self, run: Run, state: JobState, step: StepState) -> None:
        buffer = run.buffer
        for index in self._missing(state, step):
            if self._stopping or buffer.failure is not None:
                break
            with buffer.item(index):
                self._auditor.rendered(step, index)
                body = await self._render(run, state, step, index)
                buffer.items.append(await self._put(run, state, step, index, body))
        buffer.closed = True

    async def _render(self, run: Run, state: JobState, step: StepState, index: int) -> str:
        if self.world.chance(0.02):
            self.world.counts["final failures"] += 1
            raise ProviderError("simulated")
        if step.name == "generate":
            return f"picture {state.job_id} {index}"
        source = state.steps[0].artifacts[index]
        return f"larger {await self._patiently(run, 'get', lambda: self._got(source))}"

    def _got(self, source: ArtifactWritten) -> str:
        found = self.world.storage.objects.get(source.s3_key)
        if found is None:
            raise ObjectMissing(source.s3_key)
        if found != source.sha256:
            raise ObjectChanged(source.s3_key)
        return found

    async def _put(self, run: Run, state: JobState, step: StepState, index: int, body: str) -> ArtifactWritten:
        generate = state.generate
        key = planned_key(state, step, index)
        write = self.world.storage.replace if index in step.lost else self.world.storage.put
        stored = await self._patiently(run, "put", lambda: write(key, body))
        size = output_size(state.parameters, step.name)
        return ArtifactWritten(
            step_id=step.step_id,
            step_name=step.name,
            attempt=step.attempt,
            item_index=index,
            artifact_id=self.world.new_id(),
            format=generate.format,
            width=size[0],
            height=size[1],
            seed=item_seed(generate.seed, generate.count, index),
            s3_key=key,
            bytes=len(stored),
            sha256=stored,
        )

    async def _patiently(self, run: Run, name: str, call: Callable[[], str]) -> str:
        while True:
            effect = Effect(name, call, failure=ObjectStoreUnavailable("simulated"))
            try:
                return await effect
            except ObjectStoreUnavailable:
                if self._stopping or self._happens(0.3):
                    raise
                if (await run.jobs.load(run.claim.command.job_id)).cancel_pending:
                    raise

    async def _lost(self, state: JobState) -> list[int]:
        objects, written = self.world.storage.objects, state.steps[0].artifacts

        def look() -> list[int]:
            return [index for index, one in written.items() if objects.get(one.s3_key) != one.sha256]

        lost = await Effect("look", look)
        self.world.counts["lost sources"] += len(lost)
        return lost

    async def _fail(
        self, run: Run, state: JobState, step: StepState, item_index: int | None, cause: StepFailure
    ) -> None:
        lost = await self._lost(state) if isinstance(cause, ObjectMissing | ObjectChanged) else []
        command = FailAttempt(
            step_id=step.step_id,
            attempt=step.attempt,
            error_code=cause.error_code,
            error_message=str(cause),
            item_index=item_index,
            retryable=cause.retryable,
            delay_s=self.world.dice.uniform(0.5, 4.0),
            max_attempts=MAX_ATTEMPTS,
            lost=lost,
        )
        await self._execute(run, state, command)


def finishes(bodies: Sequence[DomainEvent]) -> bool:
    """Whether the step ends with these events."""
    return any(isinstance(body, StepFinish) for body in bodies)


def claim_of(message: Message, expires_at_s: float) -> StepClaim:
    """A claim as `Outbox.claim` returns it."""
    return StepClaim(
        queue=message.queue,
        msg_id=message.msg_id,
        read_ct=message.read_ct,
        enqueued_at=NOON,
        command=message.command,
        expires_at_s=expires_at_s,
    )
