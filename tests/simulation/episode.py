"""A few jobs, many processes and faults of all kinds; then calm, in which every job must end."""

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
from tests.simulation.recovery import Operator
from tests.simulation.runner import VISIBILITY, Runner
from tests.simulation.storage import Storage
from tests.simulation.subscriber import ReadModel, Subscriber
from tests.simulation.world import World

LONGEST_CALM = 20_000
"""Effects within which everything must come to its end; some hundreds are enough."""

QUIET, STUCK = 500, 3_000
"""Picks in a row without anybody having anything to do: nobody will for now, and nobody ever will."""


class Parts(msgspec.Struct, frozen=True):
    """The parts of the protocol; planted bugs replace some."""

    storage: type[Storage] = Storage
    committer: type[SimulatedCommitter] = SimulatedCommitter
    runner: type[Runner] = Runner


SOUND = Parts()


class Episode:
    """One run from a seed. Raises `Violation`, with a note that tells the last effects and how to see it again."""

    def __init__(self, seed: int, parts: Parts = SOUND) -> None:
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
        self._idle = 0

    def run(self) -> Counter[str]:
        """Run to the end; answers what happened."""
        world = self._world
        try:
            with world.in_force():
                self._disturb_for(world.dice.randint(200, 3000))
                self._come_to_the_end()
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
        world.figures["episodes"] += 1
        world.figures["events"] += sum(map(len, world.storage.partitions))
        return world.figures

    def _disturb_for(self, steps: int) -> None:
        world = self._world
        while world.figures["steps"] < steps and self._idle < QUIET:
            if self._idle == 0 and world.chance(0.01):
                self._disturb()
            self._tick()

    def _come_to_the_end(self) -> None:
        """Nothing goes wrong any more, whoever is frozen wakes; in the end all must be as if nothing had gone wrong."""
        world = self._world
        world.calm = True
        for process in self._processes:
            process.frozen_until = process.cut_off_until = world.now
        latest = world.figures["steps"] + LONGEST_CALM
        while not self._settled():
            if world.figures["steps"] > latest or self._idle > STUCK:
                stalled = [failure for one in self._subscribers for failure in one.failures]
                self._auditor.settled()
                raise Violation(f"it never comes to rest; stalled subscriptions: {stalled}")
            self._tick()
        self._auditor.settled()

    def _tick(self) -> None:
        """Let time pass, and somebody go on."""
        world = self._world
        world.now += 0.1 * world.dice.random()
        if world.dice.choice(self._processes).step():
            world.figures["steps"] += 1
            self._idle = 0
        else:
            world.now += 0.3 * world.dice.random()
            self._idle += 1

    def _settled(self) -> bool:
        if self._idle < 2 * len(self._processes):
            return False
        storage = self._world.storage
        heads = [len(partition) for partition in storage.partitions]
        level = all(at == heads for at in storage.checkpoints.values())
        return level and not storage.waiting() and all(process.quiet for process in self._processes)

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
            "harmed images": self._harm,
        }
        [kind] = world.dice.choices(list(kinds), weights=(6, 4, 4, 2, 2, 2, 0.3, 3))
        kinds[kind]()
        world.record("", kind)
        world.figures[kind] += 1

    def _crash(self) -> None:
        process = self._world.dice.choice(self._processes)
        process.crash()
        self._world.record(process.name, "dies")

    def _freeze(self) -> None:
        process = self._world.dice.choice([*self._subscribers, *self._runners])
        process.freeze(self._world.dice.uniform(0.0, 4 * VISIBILITY))
        self._world.record(process.name, "freezes")

    def _cut_off(self) -> None:
        """Nobody is to be reached, or not by one: the database restarts, a network fails."""
        dice = self._world.dice
        cut_off = self._processes if dice.random() < 0.5 else [dice.choice(self._processes)]
        seconds = dice.uniform(0.0, 3 * VISIBILITY)
        for process in cut_off:
            process.cut_off(seconds)
            self._world.record(process.name, "is cut off")

    def _harm(self) -> None:
        """An image is removed, or another put in its place, while an upscale may need it."""
        storage, dice = self._world.storage, self._world.dice
        keys = [key for key in storage.objects if "/generate/" in key]
        if keys:
            dice.choice((storage.lose, storage.taint))(dice.choice(keys))

    def _duplicate(self) -> None:
        """A message comes twice, as when its sender's answer was lost."""
        storage = self._world.storage
        messages = [one for queue in storage.messages.values() for one in queue.values()]
        if messages:
            one = self._world.dice.choice(messages)
            storage.send(one.queue, one.command, self._world.now)
