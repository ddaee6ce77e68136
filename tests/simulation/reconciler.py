"""A counterpart of `orchestrator.reconciler`: an operator purges the queues and rebuilds them."""

from orchestrator.state import JobState, StepState, pending_step
from orchestrator.step_command import StepCommand
from tests.simulation.effects import Actor, Effect
from tests.simulation.process import Process
from tests.simulation.runner import LEASE_S
from tests.simulation.world import World


class Operator(Process):
    """Purges the outbox at times, and rebuilds it later, at the latest when faults have ended."""

    def __init__(self, world: World, name: str) -> None:
        super().__init__(world, name)
        self._actor: Actor | None = None
        self._lost = False

    @property
    def idle(self) -> bool:
        """Whether all purged commands were sent again."""
        return self._actor is None and not self._lost

    def crash(self) -> None:
        """Abandon a rebuild; it is repeated."""
        if self._actor is not None:
            self._actor.crash()
            self._actor = None
            self._lost = True

    def purge(self) -> None:
        """Delete every command."""
        self._lost = True
        for queue in self.world.storage.messages.values():
            queue.clear()

    def _step(self) -> bool:
        if self._actor is None:
            if not self._lost or not (self.world.calm or self.world.chance(0.1)):
                return False
            self._actor = Actor(self._rebuild())
        self.advance(self._actor, "rebuild")
        if self._actor.done:
            self._actor = None
        return True

    async def _rebuild(self) -> None:
        self._lost = False  # a later purge needs another rebuild
        for state, step in await Effect("compare", self._missing):
            command = StepCommand(job_id=state.job_id, step_id=step.step_id, step=step.name, version=state.version)
            delay = LEASE_S if step.status == "running" else 0.0
            storage = self.world.storage
            await Effect("resend", lambda: storage.send(step.name, command, self.world.now + delay))  # noqa: B023  # awaited at once

    def _missing(self) -> list[tuple[JobState, StepState]]:
        storage = self.world.storage
        waiting = storage.waiting()
        missing = []
        for stream in storage.streams:
            state = storage.reacted(stream)
            step = None if state is None else pending_step(state)
            if state is not None and step is not None and not waiting[step.step_id]:
                missing.append((state, step))
        return missing
