"""Part 3: three requests to the API, beside a bare application with one statement for each.

Jobs stay queued: api, orchestrator and projector run, as processes of their own, and no runner. The two sides take
turns; before the bare application's, orchestrator and projector have caught up with what ours has written.
"""

import asyncio
import contextlib
import random
import time
from collections.abc import Iterator
from typing import Any

import msgspec

from eventstore.database import Database
from projections.subscription_status import read_subscription_statuses
from tests.bench import ours
from tests.bench.http_app import TABLE
from tests.bench.http_client import Connection
from tests.bench.http_load import Load
from tests.bench.jobs import Say
from tests.bench.results import HttpLine
from tests.bench.stack import Conversation, Stack, execute, free_port, python, running
from tests.bench.work import Job

CLIENTS = (1, 16, 64)
_KNOWN_JOBS = 200
_SAMPLE = 1000
"""Latencies to keep of each turn."""
_QUEUE_LIMIT = "10000000"
"""DF_MAX_QUEUED_JOBS: no runner empties the queues, and its default would end a long measurement."""
_CATCH_UP_LIMIT_S = 120.0


class HttpSize(msgspec.Struct, frozen=True):
    """How much to measure. seconds: of each turn."""

    rounds: int
    seconds: float


class Side(msgspec.Struct, frozen=True):
    """A server. job_ids: of jobs that it knows."""

    base: str
    job_ids: list[str]


class HttpPart:
    """Measures part 3."""

    def __init__(self, stack: Stack, size: HttpSize, say: Say) -> None:
        self._stack = stack
        self._size = size
        self._say = say

    def run(self) -> list[HttpLine]:
        """Run all rounds."""
        lines = [HttpLine(name, clients) for name in ("POST", "GET", "GET progress") for clients in CLIENTS]
        home = self._stack.home
        with contextlib.ExitStack() as stack:
            our_url = stack.enter_context(self._stack.database("http_ours"))
            bare_url = stack.enter_context(self._stack.database("http_bare"))
            our_side = stack.enter_context(_our_side(self._stack, our_url))
            bare_side = stack.enter_context(_bare_side(self._stack, bare_url))
            generator = Conversation(python("tests.bench.http_load"), home / "http_load.log")
            stack.enter_context(generator)
            for line in lines:
                for side in (our_side, bare_side):
                    generator.ask(self._load(side, line, 0.2))
            asyncio.run(_catch_up(our_url))
            for number in range(self._size.rounds):
                self._say(f"round {number + 1} of {self._size.rounds}: HTTP")
                for line in lines:
                    self._turn(generator, our_side, line, line.ours, line.our_seconds)
                    asyncio.run(_catch_up(our_url))
                    self._turn(generator, bare_side, line, line.bare, line.bare_seconds)
        return lines

    def _turn(
        self, generator: Conversation, side: Side, line: HttpLine, rates: list[float], latencies: list[float]
    ) -> None:
        answer = generator.ask(self._load(side, line, self._size.seconds))
        found = answer["latencies"]
        rates.append(len(found) / answer["seconds"])
        latencies += random.sample(found, min(len(found), _SAMPLE))

    @staticmethod
    def _load(side: Side, line: HttpLine, seconds: float) -> dict[str, Any]:
        if line.operation == "POST":
            given = Load(side.base, "POST", ["/v1/jobs"], ours.creation_body(Job(1)), 202, line.clients, seconds)
        else:
            suffix = "/progress" if line.operation == "GET progress" else ""
            paths = [f"/v1/jobs/{job_id}{suffix}" for job_id in side.job_ids]
            given = Load(side.base, "GET", paths, "", 200, line.clients, seconds)
        return dict(msgspec.to_builtins(given))


@contextlib.contextmanager
def _our_side(stack: Stack, db_url: str) -> Iterator[Side]:
    environ = ours.service_environ(db_url, stack.s3) | {
        "DF_HOME": str(stack.home / "http_ours"),
        "DF_MAX_QUEUED_JOBS": _QUEUE_LIMIT,
    }
    ours.run_command(environ, "schema", "install")
    logs = {name: stack.home / f"http_{name}.log" for name in ("orchestrator", "projector", "api")}
    with contextlib.ExitStack() as roles:
        for name, log in logs.items():
            roles.enter_context(ours.role(name, environ, log))
        base = ours.listening_url(logs["api"])
        yield Side(base, asyncio.run(_create_jobs(base)))


@contextlib.contextmanager
def _bare_side(stack: Stack, db_url: str) -> Iterator[Side]:
    port = free_port()
    asyncio.run(execute(db_url, TABLE))
    with running(python("tests.bench.http_app", db_url, str(port)), {}, stack.home / "http_bare.log"):
        base = f"http://127.0.0.1:{port}"
        yield Side(base, asyncio.run(_create_jobs(base)))


async def _create_jobs(base: str) -> list[str]:
    """Create the jobs that are read. Waits until the server listens."""
    deadline = time.monotonic() + 60
    while True:
        try:
            async with Connection(base) as connection:
                return [await ours.create(connection, Job(number)) for number in range(1, _KNOWN_JOBS + 1)]
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.05)


async def _catch_up(db_url: str) -> None:
    """Wait until orchestrator and projector have read the whole log."""
    database = Database(db_url)
    try:
        async with asyncio.timeout(_CATCH_UP_LIMIT_S):
            while any(one.lag for one in await read_subscription_statuses(database)):  # noqa: ASYNC110  # others move it
                await asyncio.sleep(0.05)
    finally:
        await database.close()
