"""Homes for the embedded services, and what the tests do to them."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import asyncpg
import psutil
import pytest

_ROOT = Path(__file__).parents[2]
_HOLD = """
import signal, sys
from pathlib import Path
from dreamforge import embedded
home = Path(sys.argv[1])
embedded.Home(home).lock()
for name in sys.argv[2:]:
    getattr(embedded, name).start(home)
print("up", flush=True)
signal.pause()
"""


def of_home(home: Path) -> list[psutil.Process]:
    """The processes whose working directory lies in a home, which is all that were started there."""
    found = []
    for process in psutil.process_iter():
        try:
            if Path(process.cwd()).is_relative_to(home):
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def listening(home: Path) -> set[tuple[str, int]]:
    """The addresses and ports that the processes of a home listen on."""
    return {
        (connection.laddr.ip, connection.laddr.port)
        for process in of_home(home)
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }


def listing(directory: Path) -> dict[str, tuple[int, int, int]]:
    """Mode and owners of a directory, its parents and all that it holds."""
    paths = [directory, *directory.parents, *directory.iterdir()]
    return {str(path): (status.st_mode, status.st_uid, status.st_gid) for path in paths for status in [path.lstat()]}


def start_and_be_killed(home: Path, *services: str) -> None:
    """Start services of a home in a process of their own, and SIGKILL that one."""
    with subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(home), *services], cwd=_ROOT, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "up\n"
        parent.kill()


def query(url: str, sql: str) -> Any:
    """Run one statement and return its first value."""

    async def fetch() -> Any:
        connection = await asyncpg.connect(url, ssl=False)
        try:
            return await connection.fetchval(sql)
        finally:
            await connection.close()

    return blocking(fetch())


def blocking(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine on a thread of its own: the session's event loop belongs to pytest."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, coroutine).result()


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A home that does not exist yet; whatever runs in it afterwards is killed."""
    yield (path := tmp_path / "home")
    _kill_all(path)


@pytest.fixture(scope="module")
def lasting_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home shared by the tests of a module."""
    yield (path := tmp_path_factory.mktemp("lasting") / "home")
    _kill_all(path)


@pytest.fixture
def hostile_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables of a user's environment that are none of the services' business."""
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name, value in {
        "AWS_ACCESS_KEY_ID": "theirs",
        "AWS_SECRET_ACCESS_KEY": "theirs",
        "LC_ALL": "xx_YY.UTF-8",
        "PGHOST": "198.51.100.1",
        "PGSSLMODE": "require",
        "PGUSER": "theirs",
    }.items():
        monkeypatch.setenv(name, value)


def _kill_all(home: Path) -> None:
    for process in of_home(home):
        os.kill(process.pid, signal.SIGKILL)
