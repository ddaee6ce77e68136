"""The embedded PostgreSQL: its data, its death and its borders."""

import json
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import psutil
import pytest

from dreamforge.embedded import EmbeddedError, EmbeddedPostgres
from dreamforge.embedded.processes import is_running
from tests.embedded.conftest import listening, of_home, query, start_and_be_killed


@pytest.fixture
def postgres(lasting_home: Path) -> Iterator[EmbeddedPostgres]:
    """A running server with a table `kept` of one row."""
    server = EmbeddedPostgres.start(lasting_home)
    query(server.url, "create table if not exists kept as select 42 as answer")
    yield server
    server.stop()


def start(home: Path) -> EmbeddedPostgres:
    """Start once more, and see that the row is still there."""
    server = EmbeddedPostgres.start(home)
    assert query(server.url, "select answer from kept") == 42
    return server


def test_data_and_url_survive_a_restart(postgres: EmbeddedPostgres, lasting_home: Path) -> None:
    """A second start on the same home finds everything again, under the same URL."""
    postgres.stop()
    again = start(lasting_home)
    assert (again.url, again.adopted) == (postgres.url, False)
    again.stop()


def test_stopping_leaves_no_process_and_a_second_stop_does_nothing(
    postgres: EmbeddedPostgres, lasting_home: Path
) -> None:
    """Stop is idempotent, and complete even while a client is connected."""
    assert of_home(lasting_home)
    postgres.stop()
    assert not of_home(lasting_home)
    postgres.stop()


@pytest.mark.usefixtures("hostile_environment")
def test_a_server_that_outlived_its_parent_is_adopted(postgres: EmbeddedPostgres, lasting_home: Path) -> None:
    """After a SIGKILL of the parent the server goes on; the next start takes it over, and can stop it."""
    postgres.stop()
    start_and_be_killed(lasting_home, "EmbeddedPostgres")
    (survivor,) = {process.pid for process in of_home(lasting_home) if process.name() == "postgres"} & {
        int((lasting_home / "postgres/data/postmaster.pid").read_text().split()[0])
    }
    adopted = start(lasting_home)
    assert (adopted.adopted, adopted.pid) == (True, survivor)
    adopted.stop()
    assert not of_home(lasting_home)


def test_backends_orphaned_by_a_killed_postmaster_are_ended(postgres: EmbeddedPostgres, lasting_home: Path) -> None:
    """A backend too busy to notice its postmaster's death holds the shared memory, which rejects a new postmaster."""

    def compute() -> None:
        with pytest.raises((OSError, asyncpg.PostgresError, asyncpg.InterfaceError)):
            query(postgres.url, "select count(*) from generate_series(1, 100000000000)")

    client = threading.Thread(target=compute)
    client.start()
    while not query(
        postgres.url,
        "select count(*) from pg_stat_activity where query like '%100000000000%' and pid <> pg_backend_pid()",
    ):
        pass
    orphans = psutil.Process(postgres.pid).children()
    os.kill(postgres.pid, signal.SIGKILL)
    again = start(lasting_home)
    client.join()
    assert not any(map(is_running, orphans))
    again.stop()


@pytest.mark.usefixtures("postgres")
def test_a_stale_pid_file_that_names_another_process_does_not_prevent_the_start(lasting_home: Path) -> None:
    """After SIGKILL of everything the noted process id may by now belong to anyone."""
    pid_file = lasting_home / "postgres/data/postmaster.pid"
    lines = pid_file.read_text().splitlines(keepends=True)
    for process in of_home(lasting_home):
        process.kill()
    owner = pid_file.stat().st_uid
    with subprocess.Popen(["/bin/sleep", "60"], user=owner if os.geteuid() == 0 else None) as stranger:
        pid_file.write_text("".join([f"{stranger.pid}\n", *lines[1:]]))
        start(lasting_home).stop()
        assert stranger.poll() is None
        stranger.kill()


def test_a_taken_port_is_replaced(postgres: EmbeddedPostgres, lasting_home: Path) -> None:
    """The noted port may by now be another program's."""
    postgres.stop()
    with socket.create_server(("127.0.0.1", int(postgres.url.split(":")[-1].split("/")[0]))):
        moved = start(lasting_home)
    assert moved.url != postgres.url
    moved.stop()


def test_it_listens_on_loopback_alone(postgres: EmbeddedPostgres, lasting_home: Path) -> None:
    """Nobody on the network reaches it, and no socket file lies about."""
    try:
        addresses = listening(lasting_home)
    except psutil.AccessDenied:
        pytest.skip("this container hides the sockets of other users' processes, from root too")
    assert {ip for ip, _ in addresses} == {"127.0.0.1"}
    assert query(postgres.url, "show unix_socket_directories") == ""


def test_it_asks_for_the_password(postgres: EmbeddedPostgres, lasting_home: Path) -> None:
    """Being on this machine is not enough; and the password stands on no command line."""
    password = (lasting_home / "postgres/password").read_text()
    with pytest.raises(asyncpg.InvalidPasswordError):
        query(postgres.url.replace(password, "guessed"), "select 1")
    assert not [process for process in of_home(lasting_home) if password in " ".join(process.cmdline())]


def test_what_it_acknowledges_is_durable_and_independent_of_the_locale(postgres: EmbeddedPostgres) -> None:
    """No speed is bought with safety, and the machine's locale and time zone do not show."""
    wanted = {
        "data_checksums": "on",
        "fsync": "on",
        "full_page_writes": "on",
        "max_connections": "200",
        "server_encoding": "UTF8",
        "synchronous_commit": "on",
        "TimeZone": "UTC",
    }
    names = ", ".join(f"'{name}', current_setting('{name}')" for name in wanted)
    assert json.loads(query(postgres.url, f"select json_build_object({names})")) == wanted


@pytest.mark.usefixtures("hostile_environment")
def test_an_initdb_that_was_killed_is_begun_anew(home: Path) -> None:
    """Half a data directory never passes for a whole one; the environment of the user has no say in a new one."""
    half = home / "postgres/initdb.killed/data"
    half.mkdir(parents=True)
    (half / "PG_VERSION").write_text("18\n")
    server = EmbeddedPostgres.start(home)
    assert query(server.url, "select datcollate from pg_database where datname = current_database()") == "C"
    server.stop()
    assert {path.name for path in (home / "postgres").iterdir()} == {"data", "log", "password", "port"}


def test_a_lost_password_is_reported_at_once(postgres: EmbeddedPostgres, lasting_home: Path) -> None:
    """A new password does not open old data: the error says which file to put back."""
    postgres.stop()
    path = lasting_home / "postgres/password"
    lost = path.read_text()
    path.write_text("another")
    try:
        with pytest.raises(EmbeddedError, match=rf"refuses the password in {path}"):
            EmbeddedPostgres.start(lasting_home)
    finally:
        path.write_text(lost)
    assert not of_home(lasting_home)


def test_a_server_that_cannot_start_is_explained(postgres: EmbeddedPostgres, lasting_home: Path) -> None:
    """The error shows the end of the log, where it lies, and the way out."""
    postgres.stop()
    version = lasting_home / "postgres/data/PG_VERSION"
    version.write_text("14\n")
    try:
        with pytest.raises(EmbeddedError, match=r"(?s)postgres/log.*initialized by PostgreSQL version 14.*DF_DB_URL"):
            EmbeddedPostgres.start(lasting_home)
    finally:
        version.write_text("18\n")


def test_without_its_package_the_way_out_is_named(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no wheel exists for a machine, a database of the user's own is the answer."""
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(EmbeddedError, match="DF_DB_URL"):
        EmbeddedPostgres.start(home)
