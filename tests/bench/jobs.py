"""Parts 1 and 2: many jobs at once, and one job alone. In each round, every contestant has one turn."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import count

import msgspec

from tests.bench.contestants import CONTESTANTS, OURS, OURS_EMPTY, Contestant, Turn, turn
from tests.bench.cpu import cpu_ms_per_job, cpu_seconds
from tests.bench.peers.protocol import Request
from tests.bench.results import EMPTY, JobsResult
from tests.bench.stack import Stack

Say = Callable[[str], None]
_WARM_UP_JOBS = 10
_ROOM = 100_000
"""Numbers of jobs for one request."""


class Size(msgspec.Struct, frozen=True):
    """How much to measure. jobs: at once, by their count of images. alone: in all rounds together."""

    rounds: int
    jobs: dict[int, int]
    empty_jobs: int
    alone: int


class JobsPart:
    """Measures parts 1 and 2. only: names of contestants; empty is all."""

    def __init__(self, stack: Stack, size: Size, say: Say, only: Iterable[str] = ()) -> None:
        self._stack = stack
        self._size = size
        self._say = say
        self._numbers = count(1, _ROOM)
        self._turns = count(1)
        self._chosen = [one for one in CONTESTANTS if not only or one.name in set(only)]
        self.result = JobsResult()

    def run(self) -> JobsResult:
        """Run all rounds. Who goes first changes by the round."""
        for skipped in [one for one in self._chosen if one.needs_redis and self._stack.redis_url is None]:
            self._chosen.remove(skipped)
            self.result.skipped[skipped.name] = "no redis-server on the PATH"
            self._say(f"{skipped.name} is skipped: no redis-server on the PATH")
        for number in range(self._size.rounds):
            start = number % len(self._chosen)
            for contestant in self._chosen[start:] + self._chosen[:start]:
                self._say(f"round {number + 1} of {self._size.rounds}: {contestant.name}")
                self._measure(contestant)
        self.result.rates.sort(key=lambda line: _place(line.contestant))
        self.result.times.sort(key=lambda line: _place(line.contestant))
        return self.result

    def _measure(self, contestant: Contestant) -> None:
        with self._turn(contestant) as running:
            self._measure_alone(contestant, running)
            for images, jobs in self._size.jobs.items():
                self._measure_rate(contestant, running, Request(next(self._numbers), jobs, images), f"count {images}")
            if contestant.module is not None and contestant.store == "boto3":
                self._measure_rate(contestant, running, Request(next(self._numbers), self._size.empty_jobs, 0), EMPTY)
        if contestant is OURS:
            with self._turn(OURS_EMPTY) as running:
                self._measure_alone(OURS_EMPTY, running)
                self._measure_rate(OURS, running, Request(next(self._numbers), self._size.empty_jobs), EMPTY)

    @contextmanager
    def _turn(self, contestant: Contestant) -> Iterator[Turn]:
        with turn(self._stack, contestant, f"turn_{next(self._turns)}") as running:
            running.ask(Request(next(self._numbers), _WARM_UP_JOBS))
            yield running

    def _measure_alone(self, contestant: Contestant, running: Turn) -> None:
        alone = Request(next(self._numbers), -(-self._size.alone // self._size.rounds), alone=True)
        self.result.times_of(contestant.name, contestant.end).seconds += running.ask(alone)

    def _measure_rate(self, contestant: Contestant, running: Turn, request: Request, work: str) -> None:
        before = cpu_seconds(running.groups)
        [seconds] = running.ask(request)
        line = self.result.rates_of(contestant.name, work)
        line.jobs_per_s.append(request.jobs / seconds)
        line.cpu.append(cpu_ms_per_job(before, cpu_seconds(running.groups), request.jobs))


def _place(name: str) -> int:
    return [one.name for one in (OURS, OURS_EMPTY, *CONTESTANTS)].index(name)
