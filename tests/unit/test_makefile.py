"""What make says before it does anything."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.kit import outside, project_root


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the Makefile, and what its targets are made from."""
    shutil.copy(project_root() / "Makefile", tmp_path)
    shutil.copy(project_root() / "pyproject.toml", tmp_path)
    shutil.copytree(project_root() / "requirements", tmp_path / "requirements")
    return tmp_path


def said(folder: Path, *words: str, **variables: str) -> str:
    """What make would do, and what it says to that."""
    command = ["make", "--dry-run", *words]
    done = subprocess.run(
        command, cwd=folder, env={**outside(), **variables}, capture_output=True, text=True, check=True
    )
    return done.stderr


@pytest.mark.parametrize("target", ["up", "up-fake", "demo"])
def test_make_says_which_settings_it_ignores_and_what_takes_them(folder: Path, target: str) -> None:
    assert "ignores" not in said(folder, target, DF_TEST_EXAMPLES="1")
    told = said(folder, target, DF_PORT="9", DF_DB_URL="postgresql://somewhere", DF_TEST_EXAMPLES="1")
    assert "make ignores DF_DB_URL DF_PORT: `.venv/bin/dreamforge up` is what takes settings" in told


def test_make_says_that_it_ignores_the_settings_file_and_its_own_arguments(folder: Path) -> None:
    (folder / ".env").write_text("DF_PORT=9")
    assert "make ignores DF_HOST .env:" in said(folder, "up", "DF_HOST=::1")


@pytest.mark.parametrize("name", ["requirements/default.txt", "requirements/dev.txt", "pyproject.toml"])
def test_an_install_is_repeated_when_what_it_installs_has_changed(name: str) -> None:
    rules = (project_root() / "Makefile").read_text("utf-8")
    line = next(one for one in rules.splitlines() if one.startswith("$(VENV)/.installed $(VENV)/.installed-dev: $(PY)"))
    assert name in line.split()
