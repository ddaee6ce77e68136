"""An episode: a few jobs, many processes and random faults; then no faults, and every job must end."""

from collections import Counter
from collections.abc import Callable
from typing import cast

import msgspec

from eventstore.committer import Committer
from eventstore.log import Log
from orchestrator.process_manager import Orchestrator
from tests.simulation.clients import Client
from tests.simulation.connection import SimulatedCommitter, SimulatedLog, jobs
from tests.simulation.invariants import Auditor, Violation
from tests.simulation.process import Process
from tests.simulation.reconciler import Operator
from tests.simulation.runner import LEASE_S, Runner
from tests.simulation.storage import Storage
from tests.simulation.subscriber import ReadModel, Subscriber
from tests.simulation.world import World

MAX_CALM_EFFECTS = 20_000
"""Effects without faults within which all jobs must end. Some hundreds are enough."""

IDLE_PICKS, STUCK_PICKS = 500, 3_000
"""Picks in a row without a runnable process: enough to end the disturbances, and enough to call it stuck."""


class Parts(msgspec.Struct, frozen=True):
    """The parts of the protocol; planted bugs replace some."""

    storage: type[Storage] = Storage
    committer: type[SimulatedCommitter] = SimulatedCommitter
    runner: type[Runner] = Runner


NO_BUGS = Parts()


class Episode:
    """One run from a seed. Raises `Violation` with a note about the last effects and how to replay it."""

    def __init__(self, seed: int, parts: Parts = NO_BUGS) -> None:
        self._seed = seed
        auditor = Auditor()
        storage = parts.storage(auditor)
        auditor.storage = storage
        self._auditor = auditor
        self._world = world = World(seed, storage)
        committer = parts.committer(storage, world.clock)
        log = cast("Log", SimulatedLog(storage, world.clock, repeats=False))
        server = jobs(storage, committer, world.clock, "api")
        self._clients = [Client(world, f"client {n}", committer, server) for n in range(world.dice.randint(1, 5))]
        self._subscribers = [
            Subscriber(world, f"{name} {n}", handler())
            for n in range(2)
            for name, handler in (
                ("orchestrator", lambda: Orchestrator(log, cast("Committer", committer), "orchestrator")),
                ("projector", lambda: ReadModel(world)),
            )
        ]
        self._runners = [parts.runner(world, f"runner {n}", committer, auditor) for n in range(3)]
        self._operator = Operator(world, "operator")
        self._processes: list[Process] = [*self._clients, *self._subscribers, *self._runners * 3, self._operator]
        self._idle_picks = 0

    def run(self) -> Counter[str]:
        """Run to the end. Returns counts of what happened."""
        world = self._world
        try:
            with world.patched_service():
                self._disturb_for(world.dice.randint(200, 3000))
                self._run_to_the_end()
        except Exception as error:
            violation = error if isinstance(error, Violation) else Violation(f"the service's code broke: {error!r}")
            seen = "\n".join(world.trace)
            violation.add_note(
                f"The last effects:\n{seen}\nSee it again: python -m tests.simulation --seed {self._seed}"
            )
            raise violation from error
        finally:
            for process in self._processes:
                process.crash()
        world.counts["episodes"] += 1
        world.counts["events"] += sum(map(len, world.storage.partitions))
        return world.counts

    def _disturb_for(self, steps: int) -> None:
        world = self._world
        while world.counts["steps"] < steps and self._idle_picks < IDLE_PICKS:
            if self._idle_picks == 0 and world.chance(0.01):
                self._disturb()
            self._tick()

    def _run_to_the_end(self) -> None:
        """Run without further faults until all is settled. The final state must be as without any faults."""
        world = self._world
        world.calm = True
        for process in self._processes:
            process.frozen_until = process.cut_off_until = world.now
        latest = world.counts["steps"] + MAX_CALM_EFFECTS
        while not self._settled():
            if world.counts["steps"] > latest or self._idle_picks > STUCK_PICKS:
                stalled = [failure for one in self._subscribers for failure in one.failures]
                self._auditor.check_end()
                raise Violation(f"it never comes to rest; stalled subscriptions: {stalled}")
            self._tick()
        self._auditor.check_end()

    def _tick(self) -> None:
        """Advance the time, and run one effect of a random process."""
        world = self._world
        world.now += 0.1 * world.dice.random()
        if world.dice.choice(self._processes).step():
            world.counts["steps"] += 1
            self._idle_picks = 0
        else:
            world.now += 0.3 * world.dice.random()
            self._idle_picks += 1

    def _settled(self) -> bool:
        if self._idle_picks < 2 * len(self._processes):
            return False
        storage = self._world.storage
        heads = [len(partition) for partition in storage.partitions]
        level = all(at == heads for at in storage.checkpoints.values())
        return level and not storage.waiting() and all(process.idle for process in self._processes)

    # Disturbances ---------------------------------------------------------------------------------

    def _disturb(self) -> None:
        world = self._world
        kinds: dict[str, Callable[[], None]] = {
            "crashes": self._crash,
            "freezes": self._freeze,
            "outages": self._cut_off,
            "stops": lambda: world.dice.choice(self._runners).stop(),
            "timeouts": lambda: world.dice.choice(self._runners).give_up(),
            "duplicates": self._duplicate,
            "purges": self._operator.purge,
            "harmed images": self._damage_image,
        }
        [kind] = world.dice.choices(list(kinds), weights=(6, 4, 4, 2, 2, 2, 0.3, 3))
        kinds[kind]()
        world.record("", kind)
        world.counts[kind] += 1

    def _crash(self) -> None:
        process = self._world.dice.choice(self._processes)
        process.crash()
        self._world.record(process.name, "dies")

    def _freeze(self) -> None:
        process = self._world.dice.choice([*self._subscribers, *self._runners])
        process.freeze(self._world.dice.uniform(0.0, 4 * LEASE_S))
        self._world.record(process.name, "freezes")

    def _cut_off(self) -> None:
        """All processes or one lose the database and the objects, as in a restart or a network failure."""
        dice = self._world.dice
        cut_off = self._processes if dice.random() < 0.5 else [dice.choice(self._processes)]
        seconds = dice.uniform(0.0, 3 * LEASE_S)
        for process in cut_off:
            process.cut_off(seconds)
            self._world.record(process.name, "is cut off")

    def _damage_image(self) -> None:
        """Remove or replace an image that an upscale may need."""
        storage, dice = self._world.storage, self._world.dice
        keys = [key for key in storage.objects if "/generate/" in key]
        if keys:
            dice.choice((storage.lose, storage.taint))(dice.choice(keys))

    def _duplicate(self) -> None:
        """Send a message twice, as after a lost response."""
        storage = self._world.storage
        messages = [one for queue in storage.messages.values() for one in queue.values()]
        if messages:
            one = self._world.dice.choice(messages)
            storage.send(one.queue, one.command, self._world.now)
