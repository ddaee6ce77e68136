"""The common part of the embedded services: adopt a server that still runs, or start one and wait until it is up."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar, Self

import psutil

from dreamforge.embedded import home as home_files
from dreamforge.embedded.errors import EmbeddedError
from dreamforge.embedded.processes import (
    ServerProcess,
    choose_free_ports,
    find_processes,
    is_port_free,
    read_log_tail,
    wait_until,
)

_MAX_START_ATTEMPTS = 5


class EmbeddedService(ABC):
    """An embedded service of a home: a data directory and the server that uses it.

    name: for messages. advice: how to use another server instead; it ends each message. folder, ports_file: in the home
    and in the folder. program_name, marker: what identifies the server's processes (see `find_processes`). adopted:
    whether the server outlived its parent process.
    """

    name: ClassVar[str]
    advice: ClassVar[str]
    folder: ClassVar[str]
    ports_file: ClassVar[str]
    program_name: ClassVar[str]
    start_timeout_s: ClassVar[float]
    port_count: ClassVar[int]

    server: ServerProcess
    ports: list[int]
    marker: str
    adopted = False

    def __init__(self, home: Path) -> None:
        self.path = self._folder(home)
        self.path.mkdir(parents=True, exist_ok=True)
        self.data = self.path / "data"
        self.log = self.path / "log"

    @classmethod
    def exists(cls, home: Path) -> bool:
        """Whether this home has the service's data."""
        return (cls._folder(home) / "data").exists()

    @property
    def pid(self) -> int:
        """The process id of the server."""
        return self.server.pid

    def adopt_or_start(self) -> Self:
        """Adopt the server that still runs, or start one. Waits until it is up. Prefers the ports of the last run."""
        for _ in range(_MAX_START_ATTEMPTS):
            self.adopted = self.adopt()
            if self.adopted or self._start_and_wait_until_up():
                return self
        raise EmbeddedError(
            f"{_MAX_START_ATTEMPTS} times a port was taken while the {self.name} started. {self.advice}"
        )

    @abstractmethod
    def adopt(self) -> bool:
        """Adopt the server that outlived its parent process and answers. Ends all others."""

    @abstractmethod
    def spawn(self) -> ServerProcess:
        """Start a server on the ports, without waiting for it."""

    @abstractmethod
    def is_up(self) -> bool:
        """Whether the server can be used."""

    @abstractmethod
    def stop(self) -> None:
        """End the server within seconds, gracefully at first. A second call does nothing."""

    def wait_until_up(self, timeout_s: float) -> bool:
        """Wait until the server is up or has ended. Returns whether it is up."""
        return wait_until(lambda: not self.server.runs() or self.is_up(), timeout_s) and self.server.runs()

    def server_processes(self) -> list[psutil.Process]:
        """The running processes of this data directory's server."""
        return find_processes(self.program_name, self.marker)

    def read_saved_ports(self) -> list[int]:
        """The ports of the last run; empty before the first one."""
        return home_files.read_ports(self.path / self.ports_file)

    @classmethod
    def _folder(cls, home: Path) -> Path:
        return home.expanduser().resolve() / cls.folder

    def _start_and_wait_until_up(self) -> bool:
        """Start a server and wait until it is up. Returns False if another process took one of its ports meanwhile."""
        self.ports = choose_free_ports(self.port_count, self.read_saved_ports())
        home_files.write_ports(self.path / self.ports_file, self.ports)
        self.server = self.spawn()
        try:
            if self.wait_until_up(self.start_timeout_s):
                return True
            collided = not self.server.runs() and (not all(map(is_port_free, self.ports)) or self.server_processes())
        except BaseException:
            self.stop()
            raise
        self.stop()
        if collided:
            return False
        raise EmbeddedError(
            f"The {self.name} does not start; its log, {self.log}, ends:\n{read_log_tail(self.log)}\n{self.advice}"
        )


@contextmanager
def wrap_os_errors(service: type[EmbeddedService], home: Path) -> Iterator[None]:
    """Raise `EmbeddedError` for an error of the operating system."""
    try:
        yield
    except (OSError, psutil.AccessDenied) as error:
        raise EmbeddedError(f"The {service.name} in {home} cannot be used: {error}. {service.advice}") from error
