"""Finds, starts, awaits and ends server processes, which may outlive their parent process."""

import contextlib
import os
import random
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil

LOOPBACK = "127.0.0.1"

# Below the ephemeral ranges of Linux and macOS: an outgoing connection cannot take a saved port between two runs.
_PORT_RANGE = range(20000, 32768)
_POLL_INTERVAL_S = 0.02
_MAX_LOG_BYTES = 8 * 2**20
_LOG_TAIL_BYTES = 4096


class ServerProcess:
    """A server process: a child of this process, or one adopted after its parent died."""

    def __init__(self, process: psutil.Process, child: subprocess.Popen[bytes] | None = None) -> None:
        self.process = process
        self._child = child

    @classmethod
    def spawn(cls, command: Sequence[str | Path], *, cwd: Path, env: Mapping[str, str], log: Path) -> "ServerProcess":
        """Start a server in a new session, which Ctrl-C does not reach. Its output goes to a log file."""
        _rotate_large_log(log)
        with os.fdopen(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "wb") as output:
            child = subprocess.Popen(
                command,
                cwd=cwd,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return cls(psutil.Process(child.pid), child)

    @property
    def pid(self) -> int:
        """The process id."""
        return int(self.process.pid)

    def runs(self) -> bool:
        """Whether it runs. A zombie does not count."""
        if self._child is not None:
            return self._child.poll() is None
        return is_running(self.process)

    def wait(self, timeout_s: float) -> bool:
        """Wait for its end. Returns whether it ended in time."""
        return wait_until(lambda: not self.runs(), timeout_s)

    def signal(self, signal_number: int) -> None:
        """Send it a signal, unless it has ended."""
        if self.runs():
            with contextlib.suppress(psutil.NoSuchProcess):
                self.process.send_signal(signal_number)


def is_running(process: psutil.Process) -> bool:
    """Whether a process runs: this one, not a later one with the same id. A zombie does not count."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def find_processes(name: str, marker: str) -> list[psutil.Process]:
    """The processes with this name whose command line, or process title, contains the marker.

    A process id in a file may by now belong to another process. Of another user's process, only the command line can be
    read without privileges that containers lack.
    """
    processes = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.name() == name and marker in " ".join(process.cmdline()):
                processes.append(process)
    return processes


def wait_then_kill(processes: Sequence[psutil.Process], *, grace_s: float) -> None:
    """Wait up to `grace_s` seconds until the processes end, then kill the rest."""
    wait_until(lambda: not any(map(is_running, processes)), grace_s)
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    wait_until(lambda: not any(map(is_running, processes)), 5)


def wait_until(condition: Callable[[], bool], timeout_s: float) -> bool:
    """Wait for a condition. Returns whether it became true in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_INTERVAL_S)
    return True


def choose_free_ports(count: int, preferred_ports: Sequence[int]) -> list[int]:
    """The preferred ports if all are free, else as many random free ones."""
    if len(preferred_ports) == count and all(map(is_port_free, preferred_ports)):
        return list(preferred_ports)
    candidates = iter(random.SystemRandom().sample(_PORT_RANGE, len(_PORT_RANGE)))
    return [next(port for port in candidates if is_port_free(port)) for _ in range(count)]


def is_port_free(port: int) -> bool:
    """Whether a server could bind a loopback port now."""
    with socket.socket() as probe:
        # As servers do: connections of the last run in TIME_WAIT do not count, listeners do.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
        return True


def accepts_connections(port: int) -> bool:
    """Whether a server accepts connections on a loopback port now."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((LOOPBACK, port)) == 0


def read_log_tail(log: Path) -> str:
    """The last lines of a log, for an error message."""
    if not log.exists():
        return ""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _LOG_TAIL_BYTES))
        return "\n".join(file.read().decode(errors="replace").splitlines()[-8:])


def _rotate_large_log(log: Path) -> None:
    if log.exists() and log.stat().st_size > _MAX_LOG_BYTES:
        log.replace(log.with_name(f"{log.name}.1"))
