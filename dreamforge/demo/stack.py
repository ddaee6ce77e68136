"""A temporary stack: `dreamforge up` with embedded services in a folder, as a child process."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn, Self

import psutil

from dreamforge.client.api_client import Client
from dreamforge.embedded.processes import (
    LOOPBACK,
    choose_free_ports,
    is_running,
    read_log_tail,
    wait_then_kill,
    wait_until,
)
from dreamforge.settings import unconfigured_environ

_START_TIMEOUT_S = 120.0
_STOP_TIMEOUT_S = 30.0
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StackError(Exception):
    """The stack did not start, or did not stop; the message says why."""


class DemoStack:
    """`dreamforge up` as a child process. A `with` block starts it and waits until it is ready; its end stops it."""

    def __init__(self, home: Path) -> None:
        self._home = home.resolve()
        self._home.mkdir(parents=True, exist_ok=True)
        self._log = self._home / "stack.log"
        self._port = choose_free_ports(1, [])[0]
        self._owns_home = False
        self.base_url = f"http://{LOOPBACK}:{self._port}"

    def __enter__(self) -> Self:
        environ = unconfigured_environ() | {"DF_HOME": str(self._home), "DF_FAKE_RUNNER": "1"}
        command = [sys.executable, "-m", "dreamforge", "--no-env-file", "up", "--port", str(self._port)]
        self._log.unlink(missing_ok=True)  # rather than truncated: another stack may still be writing it
        with self._log.open("wb") as log:
            # In a new session: Ctrl-C reaches only this process, which then stops everything in order.
            self._process = subprocess.Popen(
                command, env=environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        try:
            self._wait_until_ready()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, error: type[BaseException] | None, *_exc_info: object) -> None:
        killed = self._stop()
        if killed and error is None:
            raise StackError(f"SIGTERM did not stop {', '.join(killed)}; killed. The log: {self._log}")

    def _wait_until_ready(self) -> None:
        with Client(self.base_url) as client:
            if (
                wait_until(lambda: self._process.poll() is not None or client.is_ready(), _START_TIMEOUT_S)
                and client.is_ready()
            ):
                self._owns_home = True
                return
        raise StackError(f"The service did not start. The end of its log, {self._log}:\n{read_log_tail(self._log)}")

    def _stop(self) -> list[str]:
        """Stop all processes. Returns the names of those that had to be killed."""
        with _ignore_stop_signals():
            started = self._descendant_processes()
            if self._process.poll() is None:
                self._process.terminate()
                wait_until(
                    lambda: self._process.poll() is not None and not self._running_processes(started), _STOP_TIMEOUT_S
                )
            left = self._running_processes(started)
            names = [f"{process.name()} ({process.pid})" for process in left]
            wait_then_kill(left, grace_s=0)
            self._process.wait()
            return names

    def _descendant_processes(self) -> list[psutil.Process]:
        try:
            started: list[psutil.Process] = psutil.Process(self._process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []
        return started

    def _running_processes(self, descendants: Sequence[psutil.Process]) -> list[psutil.Process]:
        """The running processes: descendants, the process group, and servers whose folder is in the home.

        Servers count only after this stack was ready: before, they may belong to another stack that locks the home.
        """
        processes = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, ProcessLookupError):
                ours = process in descendants or os.getpgid(process.pid) == self._process.pid
                ours = ours or (self._owns_home and Path(process.cwd()).is_relative_to(self._home))
                if ours and is_running(process):
                    processes.append(process)
        return processes


def exit_on_signals() -> None:
    """Make SIGTERM and SIGHUP raise SystemExit, so that `with` blocks stop the child processes."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _raise_system_exit)


def _raise_system_exit(signal_number: int, _frame: FrameType | None) -> NoReturn:
    sys.exit(128 + signal_number)


@contextlib.contextmanager
def _ignore_stop_signals() -> Iterator[None]:
    """A block that ignores Ctrl-C and termination signals."""
    handlers = {number: signal.signal(number, signal.SIG_IGN) for number in _STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
