"""The home: one process at a time, and secrets that stay what and whose they are."""

import os
import stat
from pathlib import Path

import pytest

from dreamforge.embedded import EmbeddedError, Home, HomeInUse
from dreamforge.embedded import home as home_files
from tests.embedded.conftest import start_and_be_killed


def test_a_locked_home_is_rejected_to_others_with_the_holders_pid(home: Path) -> None:
    """A second `up` on one home must stop before it touches anything, and say who is in the way."""
    holder = Home(home)
    holder.lock()
    with pytest.raises(HomeInUse, match=rf"{home} is in use by process {os.getpid()}:.*DF_HOME"):
        Home(home).lock()
    holder.release()


def test_a_released_home_can_be_locked_again(home: Path) -> None:
    """Releasing gives the home back; repeating either call does nothing."""
    first, second = Home(home), Home(home)
    first.lock()
    first.lock()
    first.release()
    first.release()
    second.lock()
    second.release()


def test_a_killed_holder_holds_nothing(home: Path) -> None:
    """No stale lock file has to be removed by hand after a crash."""
    start_and_be_killed(home)
    survivor = Home(home)
    survivor.lock()
    survivor.release()


def test_a_home_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    """The error says which variable to change."""
    (tmp_path / "file").touch()
    with pytest.raises(EmbeddedError, match=r"DF_HOME .*/file/home cannot be used"):
        Home(tmp_path / "file" / "home").lock()


def test_a_secret_is_drawn_once_and_kept_private(tmp_path: Path) -> None:
    """A later run finds the same secret, and nobody else can read it."""
    path = tmp_path / "key"
    drawn = home_files.read_or_create_secret(path)
    assert home_files.read_or_create_secret(path) == drawn != home_files.read_or_create_secret(tmp_path / "other")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
