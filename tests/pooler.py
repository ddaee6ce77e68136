"""Debian's PgBouncer in transaction mode, in front of the tests' databases.

DF_TEST_POOLER=pgbouncer leads every database of the tests' stores and services through it; DF_TEST_LISTEN=off takes
their direct connection for LISTEN away, with or without a pooler.
"""

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

from dreamforge.embedded.processes import LOOPBACK, accepts_connections, choose_free_ports, wait_until

PROGRAM = Path("/usr/sbin/pgbouncer")
_CONFIG = """
[databases]
* = host={host} port={port}

[pgbouncer]
listen_addr = {loopback}
listen_port = {own}
unix_socket_dir =
auth_type = scram-sha-256
auth_file = {folder}/users
pool_mode = transaction
max_client_conn = 2000
default_pool_size = 20
server_idle_timeout = 5
"""

_poolers: dict[tuple[str | None, int | None], int] = {}


def wanted() -> bool:
    """Whether the tests use a pooler."""
    return os.environ.get("DF_TEST_POOLER") == "pgbouncer"


def listens() -> bool:
    """Whether the tests' stores and services can LISTEN."""
    return os.environ.get("DF_TEST_LISTEN") != "off"


def through(url: str) -> str:
    """The URL of a database through its server's pooler; its own URL if there is none."""
    parts = urlsplit(url)
    port = _poolers.get((parts.hostname, parts.port))
    return url if port is None else on_port(url, port)


def on_port(url: str, port: int) -> str:
    """The URL of a database through the pooler on a port of this machine."""
    parts = urlsplit(url)
    user = parts.netloc.rpartition("@")[0]
    return parts._replace(netloc=f"{user}@{LOOPBACK}:{port}").geturl()


@contextlib.contextmanager
def pooled(url: str, *logins: tuple[str, str]) -> Iterator[None]:
    """Runs a pooler in front of a server during the block, if the tests use one.

    url: of the server, with the owner's login. logins: others that it lets through.
    """
    if not wanted():
        yield
        return
    parts = urlsplit(url)
    with started(url, *logins) as port:
        _poolers[parts.hostname, parts.port] = port
        try:
            yield
        finally:
            _poolers.pop((parts.hostname, parts.port), None)


@contextlib.contextmanager
def started(url: str, *logins: tuple[str, str]) -> Iterator[int]:
    """A pooler in front of a server; its port. Arguments as for `pooled`."""
    parts = urlsplit(url)
    owner = (unquote(parts.username or ""), unquote(parts.password or ""))
    folder = Path(tempfile.mkdtemp(prefix="pooler-"))
    folder.chmod(0o755)  # it drops root's rights before it reads
    [own] = choose_free_ports(1, [])
    config = _CONFIG.format(host=parts.hostname, port=parts.port, loopback=LOOPBACK, own=own, folder=folder)
    (folder / "ini").write_text(config)
    (folder / "users").write_text("".join(f'"{user}" "{password}"\n' for user, password in (owner, *logins)))
    as_nobody = ["-u", "nobody"] if os.geteuid() == 0 else []
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([PROGRAM, "-q", *as_nobody, folder / "ini"], stdout=log, stderr=log)
    try:
        assert wait_until(lambda: accepts_connections(own) or process.poll() is not None, 10), (
            "PgBouncer does not start"
        )
        assert process.poll() is None, (folder / "log").read_text()
        yield own
    finally:
        process.terminate()
        process.wait(10)
        shutil.rmtree(folder)
