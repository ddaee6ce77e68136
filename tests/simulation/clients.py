"""A client that creates jobs, cancels and retries them, and repeats its requests."""

from contextlib import suppress

from eventstore.committer import Transition
from eventstore.log import DEFAULT_TENANT, Append
from orchestrator.decisions import CommandRejected, JobRequest, RequestCancel, RequestRetry
from orchestrator.events import JobCreated, Meta, Outcome, PersonalText, PlannedStep, StepName
from orchestrator.parameters import UpscaleParams
from orchestrator.service import JobService, NoSuchJob
from tests.kit import generate_params
from tests.simulation.connection import SimulatedCommitter
from tests.simulation.effects import Actor
from tests.simulation.process import Process
from tests.simulation.world import World


class Client(Process):
    """Creates one job after another through a server that may crash at any time, and sends requests for each.

    done: the creation has a response.
    """

    def __init__(self, world: World, name: str, committer: SimulatedCommitter, jobs: JobService) -> None:
        super().__init__(world, name)
        self._committer = committer
        self._jobs = jobs
        self._actor: Actor | None = None
        self._choose_job()

    def _choose_job(self) -> None:
        """Choose another job at random."""
        dice = self.world.dice
        self._count = dice.randint(1, 4)
        self._chained = dice.random() < 0.7
        self._cancels = dice.random() < 0.3
        self.job_id = self.world.new_id()
        self.done = False

    @property
    def idle(self) -> bool:
        """Whether its job is created and no request is in progress."""
        return self.done and self._actor is None and not self._may_repair

    def crash(self) -> None:
        """Lose the server. A request without a response is repeated."""
        if self._actor is not None:
            self._actor.crash()
            self._actor = None

    def _step(self) -> bool:
        if self._actor is None:
            self._actor = self._next()
        if self._actor is None:
            return False
        self.advance(self._actor, "client")
        if self._actor.done:
            self._actor = None
        return True

    def _next(self) -> Actor | None:
        chance, outcome = self.world.chance, self._outcome
        over = outcome is not None and not self._may_repair
        if over and not self.world.calm and self.world.dice.random() < 0.05:
            self._choose_job()
        if not self.done or chance(0.002):
            return Actor(self._create())
        if self._cancels and chance(0.01):
            return Actor(self._ask(RequestCancel()))
        if chance(0.1 if outcome == "failed" else 0.002) or (self.world.calm and self._may_repair):
            return Actor(self._ask(RequestRetry()))
        return None

    @property
    def _may_repair(self) -> bool:
        """Whether the job failed because images are lost, which a retry renders again."""
        states = self.world.storage.states.get(self.job_id, [])
        return any(one.outcome == "failed" and one.error is not None and one.error.lost for one in states[-1:])

    @property
    def _outcome(self) -> Outcome | None:
        states = self.world.storage.states.get(self.job_id)
        return states[-1].outcome if states else None

    async def _create(self) -> None:
        """Create the job. A conflict means that an earlier request has created it."""
        created = self.world.event(self._submission(), Meta(), private=PersonalText(prompt="a castle"))
        answer = await self._committer.commit(
            Transition(append=Append(stream=self.job_id, category="job", expected=0, events=(created,)))
        )
        self.world.counts["jobs" if answer.committed and not self.done else "repeated creates"] += 1
        self.done = True

    async def _ask(self, asked: JobRequest) -> None:
        with suppress(CommandRejected, NoSuchJob):
            await self._jobs.commit_request(DEFAULT_TENANT, self.job_id, asked, Meta())
            self.world.counts[type(asked).__name__] += 1

    def _submission(self) -> JobCreated:
        names: list[StepName] = ["generate", "upscale"] if self._chained else ["generate"]
        return JobCreated(
            type="generate",
            steps=[PlannedStep(step_id=self.world.new_id(), name=name) for name in names],
            generate=generate_params(count=self._count),
            upscale=UpscaleParams(scale=2, impl="auto", strict_scale=False) if self._chained else None,
        )
