"""Streams lose nothing and repeat nothing while their readers come and go, and both servers are stopped and killed.

jobs run ─▶ two API processes on ports of their own ─▶ 550 readers, each now on one and now on the other
"""

import asyncio
import itertools
import random
import resource
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from functools import cache
from typing import Any
from urllib.parse import urlencode

import msgspec
import pytest

from artifacts.object_store import S3Config
from dreamforge.client.sse import EventStreamParser, ServerSentEvent
from dreamforge.embedded.processes import choose_free_ports
from tests.conftest import Backends, fresh_database
from tests.kit import Api, Service, eventually, roles_environ

SEED = 20
JOBS = 20
ITEMS = 30
JOB_READERS = 500
LOG_READERS = 50
PATIENCE = 20
"""How many chunks a reader takes at most before it leaves for the other server, in the midst of the last."""
FILTERS: tuple[dict[str, str], ...] = (
    {},
    {"category": "job"},
    {"codes": "job.finish"},
    {"codes": "step.start,step.finish", "category": "job"},
    {"category": "model"},
)
TUNED = {"DF_SSE_HEARTBEAT_S": "1", "DF_RUNNER_SLOTS": str(JOBS)}

Page = dict[str, Any]


# Readers -----------------------------------------------------------------------------------------


class Connection:
    """One GET, whose body comes in chunks. Cut off, it raises ConnectionError or IncompleteReadError."""

    def __init__(self, reader: asyncio.StreamReader, status: int) -> None:
        self.status = status
        self._reader = reader

    async def chunk(self) -> bytes:
        """The next chunk; empty at the end that the server gave the body."""
        size = int(await self._reader.readuntil(b"\r\n"), 16)
        return (await self._reader.readexactly(size + 2))[:-2]


@asynccontextmanager
async def connected(port: int, path: str, last_event_id: str) -> AsyncIterator[Connection]:
    """Ask for a stream, and leave it without a word."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        resume = f"Last-Event-ID: {last_event_id}\r\n" if last_event_id else ""
        writer.write(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{resume}\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        yield Connection(reader, int(head.split(maxsplit=2)[1]))
    finally:
        writer.close()


class Reader:
    """Reads one stream to its end, over as many connections as it takes, each to the other server than the last."""

    def __init__(self, ports: Sequence[int], path: str, seed: int) -> None:
        self.messages: list[ServerSentEvent] = []
        self.ids: list[str] = []
        self.resumes = 0
        self.end: str | None = None
        self._dice = random.Random(seed)
        self._ports = itertools.cycle(self._dice.sample(ports, len(ports)))
        self._path = path

    async def read(self) -> None:
        """Come at some moment, read, leave, resume, until the stream's end."""
        await asyncio.sleep(self._dice.uniform(0, 4))
        for port in self._ports:
            try:
                await self._read_on(port)
            except (ConnectionError, asyncio.IncompleteReadError):
                await asyncio.sleep(self._dice.uniform(0.05, 0.3))
            if self.end is not None:
                return
            self.resumes += 1

    async def _read_on(self, port: int) -> None:
        last_event_id = self.ids[-1] if self.ids else ""
        async with connected(port, self._path, last_event_id) as connection:
            if connection.status == 204:
                self.end = "204"
                return
            assert connection.status == 200, f"{connection.status} for {self._path} after {last_event_id!r}"
            parser = EventStreamParser(last_event_id)
            for left in reversed(range(self._dice.randint(1, PATIENCE))):
                chunk = await connection.chunk()
                if not chunk:
                    self.closed()
                    return
                told = parser.feed(chunk if left else chunk[: self._dice.randrange(len(chunk) + 1)])
                self.messages += [message for message in told if message.event != "cursor"]
                if parser.received_event:
                    self.ids.append(parser.last_event_id)
                if self.is_through():
                    return

    def closed(self) -> None:
        """The server has ended the body."""

    def is_through(self) -> bool:
        """Is there nothing more to come, as far as the reader can tell?"""
        return False


class JobReader(Reader):
    """Reads the stream of a job; of two that saw its end, one comes back as an EventSource does, and gets 204."""

    def __init__(self, ports: Sequence[int], job_id: str, seed: int) -> None:
        super().__init__(ports, f"/v1/jobs/{job_id}/progress/stream", seed)
        self.job_id = job_id

    @property
    def version(self) -> int:
        """How far it has read."""
        return int(self.ids[-1]) if self.ids else 0

    @property
    def events(self) -> list[ServerSentEvent]:
        """The frames that carry an id."""
        return [message for message in self.messages if message.event != "progress"]

    def closed(self) -> None:
        """The job has ended, or the server stops."""
        if self.events and parsed(self.events[-1].data)["code"] == "job.finish" and self._dice.random() < 0.5:
            self.end = "closed"


class LogReader(Reader):
    """Reads the stream of the whole log, until it is where the log ends. finish: that cursor, once it is known."""

    def __init__(self, ports: Sequence[int], given: Mapping[str, str], seed: int, finish: Sequence[str]) -> None:
        super().__init__(ports, f"/v1/events/stream?{urlencode(given)}", seed)
        self.given = given
        self.filter = {name: value for name, value in given.items() if name in {"codes", "category"}}
        self._finish = finish

    def is_through(self) -> bool:
        """Does it stand where the log ends?"""
        if self._finish and self.ids[-1:] == self._finish:
            self.end = "through"
        return self.end is not None


@cache
def parsed(data: str) -> Any:
    """A message's data; most are read by many."""
    return msgspec.json.decode(data)


# Servers -----------------------------------------------------------------------------------------


class Servers:
    """Two API processes which can be restarted, and beside them one of each other role."""

    def __init__(self, environ: dict[str, str], stack: ExitStack) -> None:
        self.ports = choose_free_ports(2, ())
        self._environ = environ
        self._stack = stack
        self._services: list[Service] = []
        stack.callback(lambda: [service.stop() for service in self._services])
        self._services += [self._start(number) for number in range(2)]
        self.apis = [Api(service.url) for service in self._services]
        for api in self.apis:
            stack.callback(api.close)
        for role in ("orchestrator", "projector"):
            stack.callback(Service(role, environ).stop)

    def start_runner(self) -> None:
        """Let the jobs run."""
        self._stack.callback(Service("runner", self._environ).stop)

    def _start(self, number: int) -> Service:
        return Service("api", {**self._environ, "DF_PORT": str(self.ports[number])})

    async def restart(self, number: int, *, kill: bool) -> None:
        """End a server by SIGKILL or SIGTERM, and start it again where it was."""
        service = self._services[number]
        if kill:
            await asyncio.to_thread(service.kill)
        else:
            assert await asyncio.to_thread(service.stop) == 0, service.output
        self._services[number] = await asyncio.to_thread(self._start, number)
        assert await asyncio.to_thread(lambda: self._services[number].url)


async def restart_all(servers: Servers, share: Callable[[], float]) -> None:
    """Restart each server twice, once by each signal, as the reading goes on; the last time both at once."""
    await reached(share, 0.05)
    await servers.restart(0, kill=True)
    await reached(share, 0.15)
    await servers.restart(1, kill=False)
    await reached(share, 0.3)
    await asyncio.gather(servers.restart(0, kill=False), servers.restart(1, kill=True))


async def reached(share: Callable[[], float], wanted: float) -> None:
    """Wait until so much of all events was read."""
    await eventually(lambda: asyncio.sleep(0, share() >= wanted), within=120, what=f"reading {wanted:.0%}")


# The chaos, and what came of it ------------------------------------------------------------------


class Outcome:
    """What the readers read, and what the service says afterwards."""

    def __init__(self, servers: Servers, seed: int) -> None:
        self._dice = random.Random(seed)
        self._turn = itertools.cycle(servers.apis)
        self._servers = servers
        self._finish: list[str] = []
        self.job_readers: list[JobReader] = []
        self.log_readers: list[LogReader] = []

    async def run(self) -> None:
        """Create jobs, let everybody read, restart everything, until all have read to the end."""
        jobs = [next(self._turn).create(count=ITEMS) for _ in range(JOBS)]
        ports = self._servers.ports
        for job_id in itertools.islice(itertools.cycle(jobs), JOB_READERS):
            self.job_readers.append(JobReader(ports, job_id, self._dice.getrandbits(32)))
        kinds = itertools.cycle(itertools.product(self._begins(), FILTERS))
        for begin, wanted in itertools.islice(kinds, LOG_READERS):
            self.log_readers.append(LogReader(ports, begin | wanted, self._dice.getrandbits(32), self._finish))
        of_log = [asyncio.create_task(reader.read()) for reader in self.log_readers]
        of_jobs = [asyncio.create_task(reader.read()) for reader in self.job_readers]
        self._servers.start_runner()
        async with asyncio.timeout(300):  # the bound only ends a test that hangs
            await asyncio.gather(restart_all(self._servers, self._share), *of_jobs)
            self._finish.append((await asyncio.to_thread(lambda: [*self.pages()]))[-1]["next_cursor"])
            await asyncio.gather(*of_log)

    def _begins(self) -> list[dict[str, str]]:
        """Where readers of the log begin: at its start, now, or at a place in between."""
        cursors = [self.api.get("/v1/events", limit=limit)["next_cursor"] for limit in (3, 8, 15)]
        return [{"from": "start"}, {"from": "now"}, *({"cursor": cursor} for cursor in cursors)]

    def _share(self) -> float:
        """How much of the jobs' events was read, of all there will be."""
        return sum(reader.version for reader in self.job_readers) / (JOB_READERS * (2 * ITEMS + 7))

    @property
    def api(self) -> Api:
        """The servers in turn."""
        return next(self._turn)

    def pages(self, **given: str) -> Iterator[Page]:
        """The log's pages from a cursor on."""
        while True:
            page = self.api.get("/v1/events", limit=1000, **given)
            yield page
            if not page["has_more"]:
                return
            given |= {"cursor": page["next_cursor"]}


@pytest.fixture(scope="module")
def outcome(backends: Backends, s3_config: S3Config) -> Iterator[Outcome]:
    """All of it, run once."""
    print(f"seed {SEED}")  # noqa: T201  # shown when a test fails
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 4096)), hard))
    with fresh_database(backends) as url, ExitStack() as stack:
        outcome = Outcome(Servers(roles_environ(url, s3_config, **TUNED), stack), SEED)
        asyncio.run(outcome.run())
        yield outcome


def test_every_jobs_stream_is_its_history(outcome: Outcome) -> None:
    """Given 500 readers of 20 jobs, then each has read its job's whole history once, in order, and knows the end."""
    assert len(outcome.job_readers) == JOB_READERS
    histories = {job_id: told(outcome.api.history(job_id)) for job_id in {one.job_id for one in outcome.job_readers}}
    assert len(histories) == JOBS
    # On a crowded machine a few come when their job has ended, and are told all of it at once.
    assert sum(reader.resumes > 0 for reader in outcome.job_readers) > JOB_READERS * 0.9
    for reader in outcome.job_readers:
        assert [read(message) for message in reader.events] == histories[reader.job_id]
    assert Counter(reader.end for reader in outcome.job_readers).keys() == {"204", "closed"}


def told(history: list[Any]) -> list[Any]:
    """A history as its stream is expected to tell it."""
    return [
        (
            str(event["version"]),
            "artifact" if event["code"] == "artifact.written" else "log",
            *(event[name] for name in ("ts", "level", "code", "step")),
            msgspec.json.decode(event["data"]),
        )
        for event in history
    ]


def read(message: ServerSentEvent) -> Any:
    """A frame of a job's stream, likewise."""
    line = parsed(message.data)
    return (
        message.last_event_id,
        message.event,
        *(line.get(name) for name in ("ts", "level", "code", "step")),
        line["payload"],
    )


def test_the_logs_stream_is_the_log(outcome: Outcome) -> None:
    """Given 50 readers, then each has read what the pages of the log hold from where it began, as its filter says."""
    assert len(outcome.log_readers) == LOG_READERS
    expected: dict[tuple[str, str], dict[str, list[Any]]] = {}
    for reader in outcome.log_readers:
        assert reader.resumes > 0
        begin = {} if reader.given.get("from") == "start" else {"cursor": reader.ids[0]}
        assert reader.given.get("cursor", reader.ids[0]) == reader.ids[0]
        key = (urlencode(begin), urlencode(reader.filter))
        if key not in expected:
            pages = outcome.pages(**begin, **reader.filter)
            expected[key] = by_stream([event for page in pages for event in page["events"]])
        assert by_stream([parsed(message.data) for message in reader.messages]) == expected[key]
    assert any(len(streams) == JOBS for streams in expected.values())


def by_stream(events: list[Any]) -> dict[str, list[Any]]:
    """Events by their stream, in the order in which they came: across streams there is none."""
    streams: dict[str, list[Any]] = {}
    for event in events:
        streams.setdefault(event["stream"], []).append(event)
    return streams
