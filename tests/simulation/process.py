"""A simulated process, which can crash, freeze and lose its connections."""

from abc import ABC, abstractmethod

from tests.simulation.effects import Actor
from tests.simulation.world import World


class Process(ABC):
    """One process of the service. A crash loses its work in progress; after a freeze its state is outdated."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.frozen_until = 0.0
        self.cut_off_until = 0.0

    def step(self) -> bool:
        """Run one effect. Returns whether there was one."""
        return self.world.now >= self.frozen_until and self._step()

    @property
    @abstractmethod
    def idle(self) -> bool:
        """Whether it has no work in progress."""

    @abstractmethod
    def crash(self) -> None:
        """Crash, and restart without work in progress."""

    @abstractmethod
    def _step(self) -> bool: ...

    def freeze(self, seconds: float) -> None:
        """Run nothing for some seconds."""
        self.frozen_until = self.world.now + seconds

    def cut_off(self, seconds: float) -> None:
        """Lose the database and the objects for some seconds."""
        self.cut_off_until = self.world.now + seconds

    def advance(self, actor: Actor, what: str) -> None:
        """Run the next effect of an actor."""
        outcome = self.world.outcome()
        if self.world.now < self.cut_off_until:
            outcome = "never sent"
            self.freeze(self.world.dice.uniform(0.0, 1.0))  # the pause before the retry
        actor.step(outcome)
        self.world.record(self.name, f"{what} {actor.last}{'' if outcome == 'done' else f' ({outcome})'}")
