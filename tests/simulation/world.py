"""What every process finds: the time, the dice, the storage. One seed decides it all."""

from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from random import Random
from types import SimpleNamespace
from unittest.mock import patch
from uuid import UUID

from eventstore import subscription
from eventstore.events import NewEvent
from orchestrator import codec, service
from orchestrator.events.base import DomainEvent, Meta, Private
from tests.kit import NOON
from tests.simulation.effects import Fate
from tests.simulation.storage import Storage


class World:
    """Time, chance and storage. calm: nothing goes wrong any more, and nobody asks for anything.

    wildness: how likely anything is to go wrong, as a factor.
    """

    def __init__(self, seed: int, storage: Storage) -> None:
        self.dice = Random(seed)
        self.storage = storage
        self.wildness = self.dice.choice((0.0, 0.3, 1.0, 3.0))
        self.calm = False
        self.now = 0.0
        self.figures: Counter[str] = Counter()
        self.trace: deque[str] = deque(maxlen=200)

    def clock(self) -> float:
        """Seconds since the beginning."""
        return self.now

    def chance(self, probability: float) -> bool:
        """Does something go wrong now that does so with a probability?"""
        return not self.calm and self.dice.random() < probability * self.wildness

    def fate(self) -> Fate:
        """What becomes of the next effect."""
        if not self.chance(0.02):
            return "done"
        fate: Fate = "answer lost" if self.dice.random() < 0.6 else "never sent"
        self.figures[fate] += 1
        return fate

    def new_id(self) -> UUID:
        """An id that the dice decide."""
        return UUID(int=self.dice.getrandbits(128))

    def event(self, body: DomainEvent, meta: Meta, *, private: Private | None = None) -> NewEvent:
        """As `service.event`, in this world's time."""
        now = NOON + timedelta(seconds=self.now)
        return codec.new_event(self.new_id(), now, body, meta, private)

    def record(self, who: str, what: str) -> None:
        """Keep what happened, for whoever has to understand a violation."""
        self.trace.append(f"{self.now:9.2f}  {who:<16} {what}")

    @contextmanager
    def in_force(self) -> Iterator[None]:
        """Let the service's code live in this world's time."""
        with (
            patch.object(service, "event", self.event),
            patch.object(subscription, "time", SimpleNamespace(monotonic=self.clock)),
            patch.object(subscription, "_pause", lambda: 2.0 + 2.0 * self.dice.random()),
        ):
            yield
