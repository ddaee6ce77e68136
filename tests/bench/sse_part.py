"""Part 4: from a commit to the subscribers of live streams, beside a bare fan-out, and what an idle subscriber costs.

Publisher, server and subscribers are three processes. No orchestrator, projector or runner runs: the publisher alone
appends events to the jobs.
"""

import asyncio
import contextlib
import random
import time
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import msgspec
import psutil

from tests.bench import ours
from tests.bench.cpu import cpu_seconds
from tests.bench.http_client import Connection
from tests.bench.jobs import Say
from tests.bench.results import IdleLine, SseLine
from tests.bench.sse_app import TABLE
from tests.bench.stack import Conversation, Stack, execute, free_port, python, running
from tests.bench.work import Job

_EVENTS_PER_S = 10.0
_CONNECTIONS = 16
_SAMPLE = 5000
"""Latencies to keep of each turn."""
_SETTLE_S = 1.0
_QUEUE_LIMIT = "10000000"
LINES = (
    ("1 of 1 job", 1, 1, 0),
    ("100 of 100 jobs", 100, 100, 0),
    ("1000 of 1000 jobs, 50 slow", 1000, 1000, 50),
    ("1000 of 1 job", 1000, 1, 0),
)
"""Name, subscribers, jobs, and subscribers that read slowly."""


class SseSize(msgspec.Struct, frozen=True):
    """How much to measure. seconds: of each turn. idle: numbers of idle subscribers, each more than the last."""

    rounds: int
    seconds: float
    idle: tuple[int, ...]


class _Side(msgspec.Struct, frozen=True):
    """A server with its publisher."""

    base: str
    pid: int
    job_ids: list[str]
    publisher: Conversation
    is_ours: bool

    def paths(self, subscribers: int, jobs: int) -> list[str]:
        return [f"/v1/jobs/{self.job_ids[number % jobs]}/progress/stream" for number in range(subscribers)]


class SsePart:
    """Measures part 4."""

    def __init__(self, stack: Stack, size: SseSize, say: Say) -> None:
        self._stack = stack
        self._size = size
        self._say = say

    def run(self) -> tuple[list[SseLine], list[IdleLine]]:
        """Run all rounds."""
        lines = [SseLine(name) for name, *_ in LINES]
        idle = [IdleLine(count) for count in self._size.idle]
        with contextlib.ExitStack() as stack:
            sides = [
                stack.enter_context(side(self._stack, max(*self._size.idle, 1000))) for side in (_our_side, _bare_side)
            ]
            client = Conversation(python("tests.bench.sse_client"), self._stack.home / "sse_client.log")
            stack.enter_context(client)
            self._say("idle subscribers")
            for side in sides:
                self._measure_idle(client, side, idle)
            for number in range(self._size.rounds):
                self._say(f"round {number + 1} of {self._size.rounds}: live streams")
                for line, (_, subscribers, jobs, slow) in zip(lines, LINES, strict=True):
                    for side in sides if number % 2 == 0 else reversed(sides):
                        self._turn(client, side, line, (subscribers, jobs, slow))
        return lines, idle

    def _turn(self, client: Conversation, side: _Side, line: SseLine, size: tuple[int, int, int]) -> None:
        subscribers, jobs, slow = size
        client.ask({"base": side.base, "paths": side.paths(subscribers, jobs), "slow": slow})
        self._publish(side, jobs, 0.3)
        client.ask({})
        before = cpu_seconds({"server": [side.pid]})["server"]
        published = self._publish(side, jobs, self._size.seconds)
        arrived = _all_arrivals(client)
        used = cpu_seconds({"server": [side.pid]})["server"] - before
        committed_at = {int(number): moment for number, moment in published["committed_at"].items()}
        time.sleep(_SETTLE_S)
        times = [moment - committed_at[number] for number, moment in arrived if number in committed_at]
        turn = line.ours if side.is_ours else line.bare
        turn.seconds += random.sample(times, min(len(times), _SAMPLE))
        turn.late += published["late"]
        turn.cpu_us.append(used * 1e6 / max(1, len(times)))
        turn.received += len(times)
        per_publication = subscribers - slow if jobs == 1 else (subscribers - slow) / min(jobs, 10)
        turn.expected += round(per_publication * len(committed_at))
        time.sleep(_SETTLE_S)  # the server notices that they left

    @staticmethod
    def _publish(side: _Side, jobs: int, seconds: float) -> dict[str, Any]:
        ask = {"job_ids": side.job_ids[:jobs], "seconds": seconds, "per_s": _EVENTS_PER_S, "ours": side.is_ours}
        return dict(side.publisher.ask(ask))

    @staticmethod
    def _measure_idle(client: Conversation, side: _Side, lines: list[IdleLine]) -> None:
        process = psutil.Process(side.pid)
        # The first ones make what is made once.
        client.ask({"base": side.base, "paths": side.paths(100, 100)})
        client.ask({"close": True})
        time.sleep(_SETTLE_S)
        before, opened = process.memory_info().rss, 0
        for line in lines:
            client.ask({"base": side.base, "paths": side.paths(line.subscribers, line.subscribers)[opened:]})
            opened = line.subscribers
            time.sleep(_SETTLE_S)
            measured = line.ours if side.is_ours else line.bare
            measured.bytes_each = (process.memory_info().rss - before) / opened
            used, began = cpu_seconds({"server": [side.pid]})["server"], time.perf_counter()
            time.sleep(5)
            seconds = time.perf_counter() - began
            measured.cpu_us_each_s = (cpu_seconds({"server": [side.pid]})["server"] - used) * 1e6 / opened / seconds
        client.ask({"close": True})
        time.sleep(_SETTLE_S)


def _all_arrivals(client: Conversation) -> list[tuple[int, float]]:
    """The events that have arrived when no more do; the streams are then closed."""
    events: list[tuple[int, float]] = []
    while True:
        time.sleep(_SETTLE_S)
        more = client.ask({})["events"]
        events += more
        if not more:
            break
    client.ask({"close": True})
    return events


@contextlib.contextmanager
def _our_side(stack: Stack, jobs: int) -> Iterator[_Side]:
    log = stack.home / "sse_api.log"
    with stack.database("sse_ours") as db_url:
        environ = ours.service_environ(db_url, stack.s3) | {
            "DF_HOME": str(stack.home / "sse_ours"),
            "DF_MAX_QUEUED_JOBS": _QUEUE_LIMIT,
            "DF_MAX_STREAMS": "20000",
        }
        ours.run_command(environ, "schema", "install")
        with ours.role("api", environ, log) as pid, _publisher(stack, db_url) as publisher:
            base = ours.listening_url(log)
            yield _Side(base, pid, asyncio.run(_create_jobs(base, jobs)), publisher, is_ours=True)


@contextlib.contextmanager
def _bare_side(stack: Stack, jobs: int) -> Iterator[_Side]:
    port = free_port()
    with stack.database("sse_bare") as db_url:
        asyncio.run(execute(db_url, TABLE))
        command = python("tests.bench.sse_app", db_url, str(port))
        with (
            running(command, {}, stack.home / "sse_bare.log") as process,
            _publisher(stack, db_url) as publisher,
        ):
            asyncio.run(_wait_until_listening(port))
            ids = [str(uuid4()) for _ in range(jobs)]
            yield _Side(f"http://127.0.0.1:{port}", process.pid, ids, publisher, is_ours=False)


def _publisher(stack: Stack, db_url: str) -> Conversation:
    return Conversation(python("tests.bench.sse_publisher", db_url), stack.home / "sse_publisher.log")


async def _create_jobs(base: str, count: int) -> list[str]:
    ids: list[str] = []
    numbers = iter(range(1, count + 1))

    async def create_next() -> None:
        async with Connection(base) as connection:
            for number in numbers:
                ids.append(await ours.create(connection, Job(number)))  # noqa: PERF401  # shared by all connections

    await asyncio.gather(*(create_next() for _ in range(_CONNECTIONS)))
    return ids


async def _wait_until_listening(port: int) -> None:
    async with asyncio.timeout(60):
        while True:
            try:
                async with Connection(f"http://127.0.0.1:{port}"):
                    return
            except ConnectionRefusedError:
                await asyncio.sleep(0.05)
