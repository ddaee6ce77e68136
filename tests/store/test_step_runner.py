"""What a runner does with a claim that is no longer its own; the work itself is shown by `tests/flow`."""

import time
from typing import Any, cast
from uuid import UUID

from msgspec.structs import replace

from eventstore.ids import new_id
from eventstore.log import Append, Batch, Send
from eventstore.outbox import Outbox
from orchestrator import step_command
from orchestrator.events import StepStart
from orchestrator.service import JobService
from orchestrator.state import JobState
from orchestrator.step_command import StepClaim, StepCommand
from runners.fake_renderer import FakeRenderer
from runners.faults import FaultPlan
from runners.item_renderer import ItemRenderer
from runners.steps import RetryPolicy, StepRunner
from tests.kit import Store, event, job_created


class LateJobs(JobService):
    """A runner that froze between its fold and its append: meanwhile another has started the step."""

    def __init__(self, store: Store, step_id: UUID) -> None:
        super().__init__(store.log, store.committer, "late")
        self._store = store
        self._step_id = step_id
        self._frozen = False

    async def load(self, job_id: UUID, *, tenant: str | None = None) -> JobState:
        state = await super().load(job_id, tenant=tenant)
        if not self._frozen:
            self._frozen = True
            start = StepStart(step_id=self._step_id, step_name="generate", attempt=1, runner="other")
            other = Append(stream=job_id, category="job", expected=state.version, events=(event(start),))
            await self._store.log.commit(Batch(appends=[other]))
        return state


def runner(jobs: JobService) -> StepRunner:
    """A runner that never comes to render or store anything."""
    renderer = FakeRenderer(faults=FaultPlan(), max_pixels=1)
    nothing = cast("Any", None)
    retry = RetryPolicy(max_attempts=3, first_delay_s=0, longest_delay_s=0)
    return StepRunner(jobs, nothing, ItemRenderer(renderer, nothing), retry=retry, name="r")


async def claimed(store: Store) -> StepClaim:
    """A claim of a new job's first step."""
    job_id, created = new_id(), job_created(scale=None)
    command = StepCommand(job_id=job_id, step_id=created.steps[0].step_id, step="generate", version=1)
    first = Append(stream=job_id, category="job", expected=0, events=(event(created),))
    await store.log.commit(Batch(appends=[first], sends=[Send(stream=job_id, queue="generate", message=command)]))
    [claim] = await Outbox(store.database, ["generate"], step_command.decode).claim(1, 60)
    return claim


async def left(store: Store) -> list[tuple[int, bool]]:
    """The queue's messages: token, and whether each is visible."""
    rows = await store.database.read("select read_ct, vt <= clock_timestamp() as visible from pgmq.q_generate")
    return [(row["read_ct"], row["visible"]) for row in rows]


async def test_a_claim_that_ran_out_before_the_fold_starts_nothing(store: Store) -> None:
    """Given a runner frozen past its lease, then it leaves the step to whoever holds the lease by now."""
    claim = replace(await claimed(store), expires_at_s=time.monotonic() - 1)
    await runner(JobService(store.log, store.committer, "late")).run(claim)
    assert await store.codes(claim.command.job_id) == ["job.created"]
    assert await left(store) == [(1, False)]


async def test_a_step_that_another_began_first_keeps_its_message(store: Store) -> None:
    """Given a runner whose start arrived late, its lease lost to us, then its step is not left without a command."""
    claim = await claimed(store)
    await runner(LateJobs(store, claim.command.step_id)).run(claim)
    assert await store.codes(claim.command.job_id) == ["job.created", "step.start"]
    assert await left(store) == [(1, False)]


async def test_a_claim_that_arrives_at_a_stopping_runner_is_given_back_without_a_trace(store: Store) -> None:
    """Given a stop, then the step is neither started nor kept from others."""
    claim = await claimed(store)
    stopping = runner(JobService(store.log, store.committer, "late"))
    stopping.stop()
    await stopping.run(claim)
    assert await store.codes(claim.command.job_id) == ["job.created"]
    assert await left(store) == [(2, True)]
