"""Who takes part in parts 1 and 2, and how a turn begins and ends. Every turn has a database of its own."""

import asyncio
import contextlib
import subprocess
from collections.abc import Callable, Iterator
from typing import Literal

import msgspec

from tests.bench import ours
from tests.bench.cpu import Groups
from tests.bench.peers.protocol import Request, measure
from tests.bench.stack import Conversation, Stack, clean_environ, python, running
from tests.bench.work import PeerConfig

Ask = Callable[[Request], list[float]]


class Contestant(msgspec.Struct, frozen=True):
    """A system to compare. module: of the peer; None is Dream Forge. end: how a job's end is known when it is alone.

    program: what runs, if it is Dream Forge.
    """

    name: str
    end: str
    module: str | None = None
    store: Literal["boto3", "obstore"] = "boto3"
    needs_redis: bool = False
    program: str = "dreamforge"


OURS = Contestant("dreamforge", "end of its event stream")
OURS_EMPTY = Contestant("dreamforge, empty steps", "end of its event stream", program="tests.bench.empty_service")
CONTESTANTS = (
    OURS,
    Contestant("pgqueuer", "NOTIFY by its last handler", "pgqueuer_peer"),
    Contestant("pgqueuer, obstore", "NOTIFY by its last handler", "pgqueuer_peer", store="obstore"),
    Contestant("procrastinate", "polled every 1 ms", "procrastinate_peer"),
    Contestant("dbos", "its handle, polling every 1 ms", "dbos_peer"),
    Contestant("celery, redis", "its result backend's notification", "celery_peer", needs_redis=True),
)


class Turn(msgspec.Struct, frozen=True):
    """A contestant that runs. ask: have its client run jobs. groups: whose CPU time counts as its own."""

    ask: Ask
    groups: Groups


@contextlib.contextmanager
def turn(stack: Stack, contestant: Contestant, name: str) -> Iterator[Turn]:
    """Start a contestant on a new database, and stop it at the end. name: of the turn, and of its database."""
    begin = _our_turn if contestant.module is None else _peer_turn
    with stack.database(name) as db_url, begin(stack, contestant, name, db_url) as started:
        yield started


@contextlib.contextmanager
def _our_turn(stack: Stack, contestant: Contestant, name: str, db_url: str) -> Iterator[Turn]:
    log = stack.home / f"{name}.log"
    environ = ours.service_environ(db_url, stack.s3) | {"DF_HOME": str(stack.home / name)}
    started = ours.role("up", environ, log, contestant.program)
    with started as pid, asyncio.Runner() as runner, contextlib.ExitStack() as open_client:
        client = ours.connected(ours.listening_url(log), db_url)
        connected = runner.run(client.__aenter__())
        open_client.callback(lambda: runner.run(client.__aexit__(None, None, None)))
        yield Turn(lambda request: runner.run(measure(connected, request)), _groups(stack, pid))


@contextlib.contextmanager
def _peer_turn(stack: Stack, contestant: Contestant, name: str, db_url: str) -> Iterator[Turn]:
    config = PeerConfig(db_url, stack.s3, stack.redis_url, contestant.store)
    log, given = stack.home / f"{name}.log", msgspec.json.encode(config).decode()

    def command(role: str) -> list[str]:
        return python(f"tests.bench.peers.{contestant.module}", role, given)

    done = subprocess.run(
        command("install"), env=clean_environ({}), stdin=subprocess.DEVNULL, capture_output=True, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(f"{contestant.name} cannot be installed:\n{done.stderr.decode()[-4000:]}")
    with running(command("work"), {}, log) as worker, Conversation(command("client"), log) as client:
        yield Turn(lambda request: list(client.ask(msgspec.to_builtins(request))), _groups(stack, worker.pid))


def _groups(stack: Stack, python_pid: int) -> Groups:
    return {"python": [python_pid]} | {name: [pid] for name, pid in stack.pids.items()}
