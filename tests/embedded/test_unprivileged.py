"""Running as root: another user for Postgres, and nothing outside the home touched."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from dreamforge.embedded import EmbeddedPostgres, EmbeddedSeaweed
from dreamforge.embedded.unprivileged import Account, account_for, command_as_user
from tests.embedded.conftest import listing, query

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root has another user to become")
_ACCOUNT = Account(65534, 65534)


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A directory that everybody can enter."""
    path = Path(tempfile.mkdtemp(dir="/tmp"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def test_nothing_outside_the_home_is_touched(tmp_path: Path) -> None:
    """Both services come and go; no mode, owner or entry around the home differs."""
    home = tmp_path / "closed" / "home"
    home.mkdir(parents=True)
    home.parent.chmod(0o700)
    before = listing(home.parent), listing(tmp_path)
    database, store = EmbeddedPostgres.start(home), EmbeddedSeaweed.start(home)
    assert query(database.url, "select 1") == 1
    store.stop()
    database.stop()
    assert (listing(home.parent), listing(tmp_path)) == before


@as_root
def test_postgres_runs_as_the_owner_of_its_data(tmp_path: Path) -> None:
    """A home below a directory that only root can enter works, and the data keeps its first owner."""
    home = tmp_path / "home"
    tmp_path.chmod(0o700)
    data = home / "postgres" / "data"
    server = EmbeddedPostgres.start(home)
    owner = data.stat().st_uid
    assert owner != 0
    assert psutil.Process(server.pid).uids().effective == owner
    server.stop()
    assert account_for(data) == Account(owner, data.stat().st_gid)


@as_root
def test_data_given_to_root_is_given_back(tmp_path: Path) -> None:
    """A home restored from a backup or copied by root starts again."""
    server = EmbeddedPostgres.start(tmp_path)
    server.stop()
    data = tmp_path / "postgres" / "data"
    for path in [data, *data.rglob("*")]:
        os.chown(path, 0, 0)
    EmbeddedPostgres.start(tmp_path).stop()
    assert data.stat().st_uid != 0


@as_root
@pytest.mark.parametrize(
    ("program_mode", "directory_mode", "expected"),
    [(0o755, 0o755, ""), (0o755, 0o700, "2,1"), (0o700, 0o755, "1"), (0o751, 0o755, "2,1")],
)
def test_no_more_is_kept_of_roots_power_than_the_permissions_require(
    open_directory: Path, program_mode: int, directory_mode: int, expected: str
) -> None:
    """Nothing where the paths are open, else reading and searching, else (the program is root's alone) overriding."""
    program = open_directory / "program"
    program.touch(program_mode)
    program.chmod(program_mode)
    open_directory.chmod(directory_mode)
    assert command_as_user([program], _ACCOUNT, [])[4:] == ["65534", "65534", expected, str(program)]
