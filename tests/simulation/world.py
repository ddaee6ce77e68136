"""The shared state of all processes: time, random numbers and storage. One seed determines everything."""

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
from orchestrator.events import DomainEvent, Meta, PersonalText
from tests.kit import NOON
from tests.simulation.effects import EffectOutcome
from tests.simulation.storage import Storage


class World:
    """Time, random numbers and storage. calm: no more faults and no new requests.

    fault_factor: multiplies the probability of every fault.
    """

    def __init__(self, seed: int, storage: Storage) -> None:
        self.dice = Random(seed)
        self.storage = storage
        self.fault_factor = self.dice.choice((0.0, 0.3, 1.0, 3.0))
        self.calm = False
        self.now = 0.0
        self.counts: Counter[str] = Counter()
        self.trace: deque[str] = deque(maxlen=200)

    def clock(self) -> float:
        """Seconds since the beginning."""
        return self.now

    def chance(self, probability: float) -> bool:
        """Whether a fault with this probability happens now."""
        return not self.calm and self.dice.random() < probability * self.fault_factor

    def outcome(self) -> EffectOutcome:
        """The outcome of the next effect."""
        if not self.chance(0.02):
            return "done"
        outcome: EffectOutcome = "answer lost" if self.dice.random() < 0.6 else "never sent"
        self.counts[outcome] += 1
        return outcome

    def new_id(self) -> UUID:
        """A random id from the seed."""
        return UUID(int=self.dice.getrandbits(128))

    def event(self, body: DomainEvent, meta: Meta, *, private: PersonalText | None = None) -> NewEvent:
        """As `service.event`, in this world's time."""
        now = NOON + timedelta(seconds=self.now)
        return codec.new_event(self.new_id(), now, body, meta, private)

    def record(self, who: str, what: str) -> None:
        """Add a line to the trace that is shown with a violation."""
        self.trace.append(f"{self.now:9.2f}  {who:<16} {what}")

    @contextmanager
    def patched_service(self) -> Iterator[None]:
        """Patch the service's code to use this world's time and random numbers."""
        with (
            patch.object(service, "make_event", self.event),
            patch.object(subscription, "time", SimpleNamespace(monotonic=self.clock)),
            patch.object(subscription, "_conflict_retry_delay_s", lambda: 2.0 + 2.0 * self.dice.random()),
        ):
            yield
