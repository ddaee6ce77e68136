"""Dream Forge: `dreamforge up` with its defaults, and its client, which speaks HTTP."""

import asyncio
import contextlib
import json
import subprocess
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path

import asyncpg
import msgspec

from artifacts.object_store import S3Config
from tests.bench.http_client import Connection, request_bytes
from tests.bench.peers.protocol import RowCounter
from tests.bench.stack import Stack, clean_environ, python, running
from tests.bench.work import PROMPT, SCALE, SIDE, Job

_CONNECTIONS = 16
_START_LIMIT_S = 60.0
_SUCCEEDED = "select count(*) from readmodel.jobs where status = 'succeeded'"


def service_environ(db_url: str, s3: S3Config) -> dict[str, str]:
    """The settings of every role: the given servers, the fake engine, free ports; all else as it comes."""
    return {
        "DF_DB_URL": db_url,
        "DF_S3_ENDPOINT": s3.endpoint or "",
        "DF_S3_ACCESS_KEY": s3.access_key,
        "DF_S3_SECRET_KEY": s3.secret_key,
        "DF_S3_BUCKET": s3.bucket,
        "DF_FAKE_RUNNER": "1",
        "DF_LOG_FORMAT": "json",
        "DF_PORT": "0",
        "DF_WORKER_METRICS_PORT": "0",
        "DF_ORCHESTRATOR_METRICS_PORT": "0",
        "DF_PROJECTOR_METRICS_PORT": "0",
    }


def run_command(environ: Mapping[str, str], *arguments: str) -> str:
    """Run `dreamforge` to its end; what it printed. Raises RuntimeError if it fails."""
    command = python("dreamforge", "--no-env-file", *arguments)
    done = subprocess.run(
        command, env=clean_environ(environ), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(f"dreamforge {' '.join(arguments)} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout


@contextlib.contextmanager
def role(name: str, environ: Mapping[str, str], log: Path, program: str = "dreamforge") -> Iterator[int]:
    """A role as its own process; its id."""
    with running(python(program, "--no-env-file", name), environ, log) as process:
        yield process.pid


class Up(msgspec.Struct, frozen=True):
    """A running `dreamforge up`: the API's URL, and the process's id."""

    base: str
    pid: int


@contextlib.contextmanager
def up(
    stack: Stack, name: str, db_url: str, more: Mapping[str, str] | None = None, program: str = "dreamforge"
) -> Iterator[Up]:
    """`dreamforge up` on a database. name: of its home and its log file. more: further settings."""
    log = stack.home / f"{name}.log"
    environ = service_environ(db_url, stack.s3) | {"DF_HOME": str(stack.home / name)} | dict(more or {})
    with role("up", environ, log, program) as pid:
        yield Up(listening_url(log), pid)


def listening_url(log: Path) -> str:
    """The API's URL, from the log of its process. Waits until it listens."""
    deadline = time.monotonic() + _START_LIMIT_S
    while time.monotonic() < deadline:
        for line in log.read_text().splitlines():
            if '"listening"' in line:
                return str(json.loads(line)["url"])
        time.sleep(0.05)
    raise RuntimeError(f"the API does not listen:\n{log.read_text()[-4000:]}")


def creation_body(job: Job) -> str:
    """The body of the request that creates a job."""
    body = {
        "type": "generate",
        "prompt": PROMPT,
        "width": SIDE,
        "height": SIDE,
        "count": job.count,
        "seed": job.number,
        "chain": {"upscale": {"scale": SCALE}},
    }
    return msgspec.json.encode(body).decode()


async def create(connection: Connection, job: Job) -> str:
    """Create a job; its id. Raises RuntimeError if it is rejected."""
    status, answer = await connection.send(request_bytes("POST", "/v1/jobs", creation_body(job).encode()))
    if status != 202:
        raise RuntimeError(f"POST /v1/jobs answered {status}: {answer.decode()}")
    return str(msgspec.json.decode(answer)["job"]["id"])


async def wait_for_end(connection: Connection, job_id: str) -> None:
    """Follow a job's stream to its end. Raises RuntimeError if the job does not succeed."""
    status, stream = await connection.send(request_bytes("GET", f"/v1/jobs/{job_id}/progress/stream"))
    if status != 204 and b"Job succeeded." not in stream:  # 204: it has ended already
        raise RuntimeError(f"job {job_id} did not succeed: {stream[-2000:].decode()}")


class DreamForgeClient:
    """Creates jobs over kept connections."""

    def __init__(self, connections: list[Connection], counter: RowCounter) -> None:
        self._connections = connections
        self._succeeded = counter

    async def run_all(self, jobs: list[Job]) -> None:
        """Create jobs concurrently; return when the read model shows all as succeeded."""
        before = await self._succeeded.count()
        waiting = iter(jobs)

        async def create_next(connection: Connection) -> None:
            for job in waiting:
                await create(connection, job)

        await asyncio.gather(*map(create_next, self._connections))
        await self._succeeded.wait_for(before + len(jobs))

    async def run_alone(self, job: Job) -> None:
        """Create a job; return at the end of its event stream."""
        connection = self._connections[0]
        await wait_for_end(connection, await create(connection, job))


@contextlib.asynccontextmanager
async def connected(base: str, db_url: str) -> AsyncIterator[DreamForgeClient]:
    """A client with open connections."""
    async with contextlib.AsyncExitStack() as stack:
        connections = [await stack.enter_async_context(Connection(base)) for _ in range(_CONNECTIONS)]
        database = await asyncpg.connect(db_url)
        stack.push_async_callback(database.close)
        yield DreamForgeClient(connections, RowCounter(database, _SUCCEEDED))
