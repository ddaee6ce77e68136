"""What can be killed and frozen."""

from abc import ABC, abstractmethod

from tests.simulation.effects import Actor
from tests.simulation.world import World


class Process(ABC):
    """One process of the service. What it has in hand dies with it, and is old news when it wakes from a freeze."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.frozen_until = 0.0
        self.cut_off_until = 0.0

    def step(self) -> bool:
        """Have one effect. Answers whether there was anything to do."""
        return self.world.now >= self.frozen_until and self._step()

    @property
    @abstractmethod
    def quiet(self) -> bool:
        """Has it nothing in hand?"""

    @abstractmethod
    def crash(self) -> None:
        """Die, and start anew with nothing in hand."""

    @abstractmethod
    def _step(self) -> bool: ...

    def freeze(self, seconds: float) -> None:
        """Stand still for a while."""
        self.frozen_until = self.world.now + seconds

    def cut_off(self, seconds: float) -> None:
        """Reach neither database nor objects for a while."""
        self.cut_off_until = self.world.now + seconds

    def advance(self, actor: Actor, what: str) -> None:
        """Let an actor have its next effect."""
        fate = self.world.fate()
        if self.world.now < self.cut_off_until:
            fate = "never sent"
            self.freeze(self.world.dice.uniform(0.0, 1.0))  # the pause before the next try
        actor.step(fate)
        self.world.record(self.name, f"{what} {actor.last}{'' if fate == 'done' else f' ({fate})'}")
