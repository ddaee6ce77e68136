"""Part 10: one chained job alone, with four processes behind PgBouncer in transaction mode, and with one process."""

import asyncio
import contextlib
import time
from collections.abc import Iterator
from itertools import count, islice

import msgspec

from tests import pooler
from tests.bench import ours
from tests.bench.http_client import Connection
from tests.bench.jobs import Say
from tests.bench.results import PooledResult, SetupLine
from tests.bench.stack import Stack
from tests.bench.work import Job

ROLES = ("orchestrator", "projector", "runner", "api")
ONE, FOUR, POOLED = "dreamforge up", "four processes", "four processes, PgBouncer"
_WARM_UP_JOBS = 10


class PooledSize(msgspec.Struct, frozen=True):
    """How much to measure. alone: jobs in all rounds together."""

    rounds: int
    alone: int


class PooledPart:
    """Measures part 10."""

    def __init__(self, stack: Stack, size: PooledSize, say: Say) -> None:
        self._stack = stack
        self._size = size
        self._say = say
        self._numbers = count(1)

    def run(self) -> PooledResult:
        """Run all rounds. Who goes first changes by the round."""
        result = PooledResult([SetupLine(ONE), SetupLine(FOUR), SetupLine(POOLED)])
        if not pooler.PROGRAM.exists():
            result.skipped = f"there is no {pooler.PROGRAM}"
            result.lines.pop()
        for number in range(self._size.rounds):
            start = number % len(result.lines)
            for line in result.lines[start:] + result.lines[:start]:
                self._say(f"round {number + 1} of {self._size.rounds}: {line.setup}")
                with self._service(line.setup, f"pooled_{result.lines.index(line)}_{number}") as base:
                    line.seconds.append(asyncio.run(self._alone(base)))
        return result

    @contextlib.contextmanager
    def _service(self, setup: str, name: str) -> Iterator[str]:
        """The API's URL of a service on a new database."""
        with self._stack.database(name) as db_url, contextlib.ExitStack() as processes:
            if setup == ONE:
                yield processes.enter_context(ours.up(self._stack, name, db_url)).base
                return
            environ = ours.service_environ(db_url, self._stack.s3) | {"DF_HOME": str(self._stack.home / name)}
            ours.run_command(environ, "schema", "install")
            if setup == POOLED:
                through = pooler.on_port(db_url, processes.enter_context(pooler.started(db_url)))
                environ |= {"DF_DB_URL": through, "DF_DB_LISTEN_URL": db_url, "DF_DB_POOLER": "transaction"}
            logs = {role: self._stack.home / f"{name}_{role}.log" for role in ROLES}
            for role, log in logs.items():
                processes.enter_context(ours.role(role, environ, log))
            yield ours.listening_url(logs["api"])

    async def _alone(self, base: str) -> list[float]:
        """The seconds of jobs that run one after the other, from each POST to the end of the stream."""
        seconds = []
        async with Connection(base) as http:
            for number in islice(self._numbers, _WARM_UP_JOBS + -(-self._size.alone // self._size.rounds)):
                began = time.perf_counter()
                await ours.wait_for_end(http, await ours.create(http, Job(number)))
                seconds.append(time.perf_counter() - began)
        return seconds[_WARM_UP_JOBS:]
