"""The invariants that are checked after every event and at the end of an episode."""

from collections import Counter
from uuid import UUID

from orchestrator.events import (
    ArtifactEvent,
    ArtifactRewritten,
    ArtifactWritten,
    CancelRequested,
    DecodedEvent,
    JobFinish,
    RetryRequested,
    StepFinish,
    StepRetry,
    StepStart,
)
from orchestrator.plan import item_seed, object_key, output_size
from orchestrator.state import JobState, StepState, pending_step
from orchestrator.step_command import StepCommand
from projections.job_view import JobView, evolve_view
from projections.progress import job_progress
from tests.simulation.storage import Storage

MAX_ATTEMPTS = 3


class Violation(AssertionError):
    """An invariant does not hold."""


class Auditor:
    """Checks every event. storage: is set before the first event."""

    storage: Storage

    def __init__(self) -> None:
        self._views: dict[UUID, JobView] = {}
        self._owners: dict[UUID, str] = {}
        self._retries: Counter[UUID] = Counter()
        self._sent: Counter[UUID] = Counter()
        self._finishes: Counter[tuple[UUID, int]] = Counter()
        self._progress: dict[UUID, float] = {}

    def appended(self, before: JobState | None, after: JobState, event: DecodedEvent) -> None:
        """Check an appended event."""
        if before is not None:
            self._check_order(before, event)
        match event.body:
            case StepStart() as body:
                self._started(before, body)
            case ArtifactWritten() as body:
                self._wrote(before, body, event)
            case ArtifactRewritten() as body:
                self._rewrote(before, body, event)
            case StepRetry(reason="not_started") as body:
                self._failed_to_start(before, body)
            case StepRetry() as body:
                self._expect_owner(before, body, event)
            case StepFinish() as body:
                self._finished(before, after, body, event)
            case JobFinish() as body:
                last = after.steps[-1].status == "succeeded"
                expect((body.status == "succeeded") == last, f"job {after.job_id} ends {body.status}: {after.steps}")
            case RetryRequested() as body:
                self._retried(before, body)
        self._view(after, event)

    def sent(self, command: StepCommand) -> None:
        """Check a command that a reaction sent."""
        step = command.step_id
        self._sent[step] += 1
        expect(self._sent[step] <= 1 + self._retries[step], f"step {command.step} was sent {self._sent[step]} times")

    def rendered(self, step: StepState, item_index: int) -> None:
        """Check an item that an attempt renders. step: the state at the start of the attempt."""
        expect(not step.has_item(item_index), f"item {item_index} of {step.name} is rendered though it was written")

    def check_end(self) -> None:
        """Check the final state."""
        for job_id, states in self.storage.states.items():
            self._check_end(states[-1])
            kept = self.storage.views[job_id]
            view = self._views[job_id]
            expect(kept.version == view.version, f"the read model of {job_id} ends at {kept.version}")
            expect(kept.steps == view.steps and kept.status == view.status, f"{job_id}: {kept} is not {view}")
            for artifact in view.artifacts:
                found = self.storage.artifacts.get((artifact.step_id, artifact.item_index))
                expect(found == artifact, f"{found} is not {artifact}")
        waiting = [one.command for queue in self.storage.messages.values() for one in queue.values()]
        expect(not waiting, f"orphan commands: {waiting}")

    def _check_order(self, before: JobState, event: DecodedEvent) -> None:
        retried = isinstance(event.body, RetryRequested)
        if retried:
            expect(before.outcome == "failed", f"a job that is {before.outcome} is retried")
        else:
            expect(before.outcome is None, f"{event.body} after the end")
        if isinstance(event.body, JobFinish):
            expect(before.running_step is None, f"the job ends while a step runs: {before}")
        if isinstance(event.body, CancelRequested):
            expect(not before.cancel_pending, "a second cancel")

    def _started(self, before: JobState | None, body: StepStart) -> None:
        assert before is not None
        step = before.step(body.step_id)
        expect(body.attempt == step.attempt + 1, f"attempt {body.attempt} follows {step.attempt}")
        expect(not before.cancel_pending, f"step {body.step} starts though a cancel was asked for")
        expect(pending_step(before) == step, f"step {body.step} starts out of turn: {before.steps}")
        self._owners[body.step_id] = body.runner

    def _failed_to_start(self, before: JobState | None, body: StepRetry) -> None:
        assert before is not None
        step = before.step(body.step_id)
        expect(body.attempt == step.attempt + 1, f"attempt {body.attempt} follows {step.attempt}")
        expect(
            step.attempts_without_progress + 1 < MAX_ATTEMPTS,
            f"step {body.step} is tried again after {step.attempts_without_progress} attempts without progress",
        )
        expect(pending_step(before) == step, f"step {body.step} fails to start out of turn: {before.steps}")
        self._owners.pop(body.step_id, None)

    def _expect_owner(
        self, before: JobState | None, body: ArtifactEvent | StepRetry | StepFinish, event: DecodedEvent
    ) -> None:
        assert before is not None
        step = before.step(body.step_id)
        current = (step.attempt, step.status, self._owners.get(body.step_id))
        found = (body.attempt, "running", event.meta.actor)
        expect(current == found, f"{body.code} by {found}, while the step is at {current}: a fenced zombie appends")

    def _wrote(self, before: JobState | None, body: ArtifactWritten, event: DecodedEvent) -> None:
        assert before is not None
        self._expect_owner(before, body, event)
        step = before.step(body.step_id)
        expect(body.item_index not in step.artifacts, f"item {body.item_index} of {body.step} is written twice")
        self._check_object(before, step, body)

    def _rewrote(self, before: JobState | None, body: ArtifactRewritten, event: DecodedEvent) -> None:
        assert before is not None
        self._expect_owner(before, body, event)
        step = before.step(body.step_id)
        expect(body.item_index in step.lost, f"item {body.item_index} of {body.step} is rewritten though it is there")
        expect(body.artifact_id == step.artifacts[body.item_index].artifact_id, "an item has two artifacts")
        self._check_object(before, step, body)

    def _retried(self, before: JobState | None, body: RetryRequested) -> None:
        """A retry allows another finish of the named step, and of failed steps after it."""
        assert before is not None
        for step in before.steps:
            if step.step_id == body.step_id or step.status == "failed":
                self._retries[step.step_id] += 1

    def _check_object(self, before: JobState, step: StepState, body: ArtifactEvent) -> None:
        key = planned_key(before, step, body.item_index)
        expect(body.s3_key == key, f"key {body.s3_key} instead of {key}")
        found = self.storage.objects.get(key)
        expect(found == body.sha256 or key in self.storage.harmed, f"{key} holds {found}: {body}")

    def _finished(self, before: JobState | None, after: JobState, body: StepFinish, event: DecodedEvent) -> None:
        if body.status == "succeeded":
            self._expect_owner(before, body, event)
            written = [item for item in range(after.generate.count) if after.step(body.step_id).has_item(item)]
            expect(len(written) == after.generate.count, f"step {body.step} succeeded with {written}")
        drive = (body.step_id, self._retries[body.step_id])
        self._finishes[drive] += 1
        expect(self._finishes[drive] == 1, f"step {body.step} finishes twice without a retry between")

    def _view(self, after: JobState, event: DecodedEvent) -> None:
        view = evolve_view(self._views.get(after.job_id), event)
        expect(evolve_view(view, event) is view, f"event {event.version} changes a view twice")
        self._views[after.job_id] = view
        for step, shown in zip(after.steps, view.steps, strict=True):
            same = (shown.attempt, shown.completed) == (step.attempt, len(step.artifacts))
            swept = after.outcome == "cancelled" and shown.status == "cancelled"
            expect(same and (swept or shown.status == step.status), f"the view shows {shown}, the state is {step}")
        expect(view.terminal == (after.outcome is not None), f"the view is {view.status}, the state {after.outcome}")
        expect(not view.terminal or view.status == after.outcome, f"the view is {view.status}, not {after.outcome}")
        now = job_progress(view).progress
        expect(now >= self._progress.get(after.job_id, 0.0), "progress went back")
        whole = all(len(step.artifacts) == after.generate.count for step in after.steps)
        expect((now == 1.0) == whole, f"progress is {now} with {after.steps}")
        self._progress[after.job_id] = now

    def _check_end(self, state: JobState) -> None:
        expect(state.outcome is not None, f"job {state.job_id} never ends: {state.steps}")
        expect(state.error is None or not state.error.lost, f"job {state.job_id} can't be repaired: {state.error}")
        for step in state.steps:
            expect(step.status != "running", f"step {step.name} never ends")
            if step.status in {"succeeded", "failed"}:
                drive = (step.step_id, self._retries[step.step_id])
                expect(
                    self._finishes[drive] == 1,
                    f"step {step.name} has {self._finishes[drive]} finishes since its last retry",
                )
            self._check_objects(state, step)

    def _check_objects(self, state: JobState, step: StepState) -> None:
        """A succeeded step leaves no object without an event. Other steps may: a crash can separate the two."""
        prefix = f"/jobs/{state.job_id}/{step.name}/"
        keys = {key for key in self.storage.objects if prefix in key}
        written = {one.s3_key for one in step.artifacts.values()} - self.storage.harmed
        keys -= self.storage.harmed
        expect(written <= keys, f"objects are gone: {written - keys}")
        if step.status == "succeeded":
            expect(keys == written, f"objects without an event: {keys - written}")


def expect(condition: bool, message: str) -> None:  # noqa: FBT001  # reads like assert
    """Raise `Violation` with a message unless the condition is true."""
    if not condition:
        raise Violation(message)


def planned_key(state: JobState, step: StepState, item_index: int) -> str:
    """The expected key of an item's object."""
    generate = state.generate
    assert step.first_started_at is not None
    seed = item_seed(generate.seed, generate.count, item_index)
    size = output_size(state.parameters, step.name)
    return object_key(
        state.tenant, state.job_id, step.name, step.first_started_at, item_index, size, seed, generate.format
    )
