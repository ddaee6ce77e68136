"""Starts `dreamforge` for the tests, by a fork server that has imported it: imports take most of a command's time.

a test ─ arguments, environment, file descriptors ─▶ fork server ─ fork ─▶ `dreamforge.__main__.main()`
a test ◀─ exit code, by a pipe ─ fork server

`Command` is a program `dreamforge` on the PATH of a test's shell, by which its commands are started in the same way.
A process whose environment differs in what Python itself reads at its start is started with `subprocess`.
"""

import atexit
import contextlib
import functools
import gc
import json
import os
import pkgutil
import select
import shlex
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import Any

_ROOT = Path(__file__).parent.parent
_NUMBER = struct.Struct("!i")
_READ_AT_START = ("PYTHON", "LC_", "LANG", "TZ")
"""Prefixes of the variables that Python reads at its start."""


def spawn(
    arguments: Sequence[str], environ: Mapping[str, str], files: Sequence[int], folder: str | None = None
) -> "Forked | subprocess.Popen[bytes]":
    """Start `dreamforge` in a new session, with file descriptors for its standard input, output and error.

    It works in the caller's folder unless another is given.
    """
    if _read_at_start(environ) != _read_at_start(os.environ):
        command = [sys.executable, "-m", "dreamforge", *arguments]
        stdin, stdout, stderr = files
        return subprocess.Popen(
            command, cwd=folder, env=environ, stdin=stdin, stdout=stdout, stderr=stderr, start_new_session=True
        )
    return Forked(arguments, environ, files, folder or str(Path.cwd()))


def run(
    arguments: Sequence[str], environ: Mapping[str, str], *, given: str = "", timeout: float = 200
) -> "subprocess.CompletedProcess[str]":
    """Run `dreamforge` to its end, with a text as input."""
    with TemporaryFile() as stdin, TemporaryFile() as stdout, TemporaryFile() as stderr:
        stdin.write(given.encode())
        stdin.seek(0)
        process = spawn(arguments, environ, [stdin.fileno(), stdout.fileno(), stderr.fileno()])
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        stdout.seek(0)
        stderr.seek(0)
        return subprocess.CompletedProcess(arguments, code, stdout.read().decode(), stderr.read().decode())


def _read_at_start(environ: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environ.items() if name.startswith(_READ_AT_START)}


class Forked:
    """A process, with as much of the interface of `subprocess.Popen` as tests need."""

    def __init__(self, arguments: Sequence[str], environ: Mapping[str, str], files: Sequence[int], folder: str) -> None:
        self.returncode: int | None = None
        self._waiting = threading.Lock()
        self._status, status = os.pipe()
        request = {"arguments": list(arguments), "environ": dict(environ), "folder": folder}
        _fork_server().ask(request, [*files, status])
        os.close(status)
        self.pid = self._told()

    def _told(self) -> int:
        told = os.read(self._status, _NUMBER.size)
        assert len(told) == _NUMBER.size, "the fork server has died"
        return int(_NUMBER.unpack(told)[0])

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end; the exit code. Raises `subprocess.TimeoutExpired`."""
        with self._waiting:
            if self.returncode is None:
                if not select.select([self._status], [], [], timeout)[0]:
                    raise subprocess.TimeoutExpired("dreamforge", timeout or 0)
                self.returncode = self._told()
                os.close(self._status)
            return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)


class Command:
    """A folder for PATH with a program `dreamforge`, which makes this process start the command."""

    _PROGRAM = """
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as asked:
    asked.connect(sys.argv[1])
    socket.send_fds(asked, [b"."], [0, 1, 2])
    request = {"arguments": sys.argv[2:], "environ": dict(os.environ), "folder": os.getcwd()}
    asked.sendall(json.dumps(request).encode())
    asked.shutdown(socket.SHUT_WR)
    sys.exit(int(asked.recv(8)))
"""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._sockets = TemporaryDirectory()  # whose path is short enough for a socket's
        path = str(Path(self._sockets.name) / "asked")
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(path)
        self._listening.listen()
        threading.Thread(target=self._serve, daemon=True).start()
        program = folder / "dreamforge"
        # By a shell: the path of Python may have a space, which a #! line can't.
        program.write_text(f'#!/bin/sh\nexec {shlex.join([sys.executable, "-IS", "-c", self._PROGRAM, path])} "$@"\n')
        program.chmod(0o755)

    def _serve(self) -> None:
        while True:
            try:
                asked = self._listening.accept()[0]
            except OSError:
                return
            threading.Thread(target=self._run, args=(asked,), daemon=True).start()

    @staticmethod
    def _run(asked: socket.socket) -> None:
        with asked, asked.makefile("rb") as stream:
            files = socket.recv_fds(asked, 1, 3)[1]
            try:
                process = spawn(files=files, **json.loads(stream.read()))
            finally:
                for number in files:
                    os.close(number)
            asked.sendall(str(process.wait()).encode())

    def close(self) -> None:
        """Stop starting commands."""
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._sockets.cleanup()


class _ForkServer:
    """The fork server of this test process."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair()
        self._asking = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.processes", str(theirs.fileno())], cwd=_ROOT, pass_fds=[theirs.fileno()]
        )
        theirs.close()

    def ask(self, request: object, files: Sequence[int]) -> None:
        """Fork a process. Its id and its exit code are sent through the last of the files."""
        text = json.dumps(request).encode()
        with self._asking:
            socket.send_fds(self._socket, [_NUMBER.pack(len(text))], list(files))
            self._socket.sendall(text)

    def end(self) -> None:
        """Stop it. Forked processes continue."""
        self._socket.close()
        self._process.wait(30)


@functools.cache
def _fork_server() -> _ForkServer:
    found = _ForkServer()
    atexit.register(found.end)
    return found


# In the fork server ------------------------------------------------------------------------------


def _serve(connection: socket.socket) -> bool:
    """Fork as asked, and report exit codes, until the connection ends. Returns True in a forked process."""
    woken, waker = os.pipe()
    os.set_blocking(waker, False)
    signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    statuses: dict[int, int] = {}
    while True:
        ready = select.select([connection.fileno(), woken], [], [])[0]
        if woken in ready:
            os.read(woken, 1024)
            for pid, code in _ended(list(statuses)):
                status = statuses.pop(pid)
                with contextlib.suppress(BrokenPipeError):
                    os.write(status, _NUMBER.pack(code))
                os.close(status)
        if connection.fileno() in ready:
            header, files, *_ = socket.recv_fds(connection, _NUMBER.size, 4)
            if not header:
                return False
            with connection.makefile("rb", buffering=0) as stream:
                text = b""
                while len(text) < _NUMBER.unpack(header)[0]:
                    text += stream.read(_NUMBER.unpack(header)[0] - len(text))
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for number in (connection.detach(), woken, waker, *statuses.values(), files[3]):
                    os.close(number)
                _set_up(json.loads(text), files[:3])
                return True
            for number in files[:3]:
                os.close(number)
            statuses[pid] = files[3]
            os.write(files[3], _NUMBER.pack(pid))


def _ended(pids: Sequence[int]) -> list[tuple[int, int]]:
    found = []
    for pid in pids:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            found.append((pid, os.waitstatus_to_exitcode(status)))
    return found


def _set_up(request: Mapping[str, Any], files: Sequence[int]) -> None:
    """Give this process its own session, folder, environment, arguments, and standard streams."""
    os.setsid()
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environ"])
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    sys.stdin = os.fdopen(0, closefd=False)
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, errors="backslashreplace", closefd=False)
    sys.argv[1:] = request["arguments"]


def _import_all() -> None:
    """Import everything that `dreamforge` may import."""
    for package in ("api", "dreamforge", "eventstore", "orchestrator", "projections", "runners"):
        for module in pkgutil.iter_modules([str(_ROOT / package)]):
            if module.name != "__main__":
                import_module(f"{package}.{module.name}")
    for name in ("uvicorn.lifespan.on", "uvicorn.loops.uvloop", "uvicorn.protocols.http.httptools_impl", "uvloop"):
        import_module(name)


def _main() -> int:
    _import_all()
    main = import_module("dreamforge.__main__").main
    gc.freeze()
    if not _serve(socket.socket(fileno=int(sys.argv[1]))):
        return 0
    try:
        code = main()
    except SystemExit as ended:  # of a wrong argument
        code = int(ended.code or 0)
    # The interpreter's own exit writes to most of the memory that is shared with the fork server.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    sys.exit(_main())
