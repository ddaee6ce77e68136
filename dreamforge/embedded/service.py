"""The common part of the embedded services: adopt a server that still runs, or start one and wait until it is up."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import psutil

from dreamforge.embedded import home as home_files
from dreamforge.embedded.errors import EmbeddedError
from dreamforge.embedded.processes import Server, choose_ports, find_processes, is_free, log_tail

_TRIES = 5


class Service(ABC):
    """A data directory and the server that uses it.

    name: for messages. advice: how to use another server instead; it ends each message. program_name, marker: what
    identifies the server's processes (see `find_processes`).
    """

    name: ClassVar[str]
    advice: ClassVar[str]
    program_name: ClassVar[str]
    start_timeout_s: ClassVar[float]
    port_count: ClassVar[int]

    def __init__(self, path: Path, *, marker: str, ports_file: str) -> None:
        self.data = path / "data"
        self.log = path / "log"
        self.marker = marker
        self._ports_file = path / ports_file

    def adopt_or_start(self) -> tuple[Server, list[int], bool]:
        """A server that is up, its ports, and whether it was adopted. The ports of the last run are preferred."""
        for _ in range(_TRIES):
            if (adopted := self.adopt()) is not None:
                return (*adopted, True)
            if (started := self._start()) is not None:
                return (*started, False)
        raise EmbeddedError(f"{_TRIES} times a port was taken while the {self.name} started. {self.advice}")

    @abstractmethod
    def adopt(self) -> tuple[Server, list[int]] | None:
        """The server that outlived its parent process and answers, with its ports. Ends all others."""

    @abstractmethod
    def spawn(self, ports: list[int]) -> Server:
        """Start a server on these ports, without waiting for it."""

    @abstractmethod
    def wait_until_up(self, server: Server, ports: list[int], timeout_s: float) -> bool:
        """Wait until the server is up or has ended. Returns whether it is up."""

    @abstractmethod
    def stop(self, server: Server) -> None:
        """End the server, gracefully at first. A second call does nothing."""

    def processes(self) -> list[psutil.Process]:
        """The running processes of this data directory's server."""
        return find_processes(self.program_name, self.marker)

    def saved_ports(self) -> list[int]:
        """The ports of the last run; empty before the first one."""
        return home_files.read_ports(self._ports_file)

    def _start(self) -> tuple[Server, list[int]] | None:
        """Start a server and wait until it is up; None if another process took one of its ports meanwhile."""
        ports = choose_ports(self.port_count, self.saved_ports())
        home_files.write_ports(self._ports_file, ports)
        server = self.spawn(ports)
        try:
            if self.wait_until_up(server, ports, self.start_timeout_s):
                return server, ports
            collided = not server.runs() and (not all(map(is_free, ports)) or self.processes())
        except BaseException:
            self.stop(server)
            raise
        self.stop(server)
        if collided:
            return None
        raise EmbeddedError(
            f"The {self.name} does not start; its log, {self.log}, ends:\n{log_tail(self.log)}\n{self.advice}"
        )


@contextmanager
def explained_errors(service: type[Service], home: Path) -> Iterator[None]:
    """Raise `EmbeddedError` for an error of the operating system."""
    try:
        yield
    except (OSError, psutil.AccessDenied) as error:
        raise EmbeddedError(f"The {service.name} in {home} cannot be used: {error}. {service.advice}") from error
