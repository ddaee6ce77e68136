"""A package of another distribution that has the name of one of ours is named before anything is imported from it."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dreamforge.shadowing import PACKAGE_NAMES, find_shadowed_package
from tests.kit import outside, project_root


@pytest.mark.parametrize("name", PACKAGE_NAMES)
@pytest.mark.parametrize("file", ["__init__.py", "models.py"])
def test_a_package_of_the_same_name_is_named(tmp_path: Path, name: str, file: str) -> None:
    """Given one that comes first on the path; without an __init__.py it comes last, and does no harm."""
    (tmp_path / name).mkdir()
    (tmp_path / name / file).touch()
    environ = {**outside(), "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-P", "-m", "dreamforge", "jobs", "list"]
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, check=False)
    if file == "__init__.py":
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith(f"dreamforge: the package {name!r} is not that of Dream Forge, {project_root()}")
        assert f"from {tmp_path / name}." in done.stderr
    else:
        assert "is not that of Dream Forge" not in done.stderr


def test_files_that_another_distribution_wrote_over_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given an installation whose record tells what size each file had."""
    record = []
    for name in PACKAGE_NAMES:
        shutil.copytree(project_root() / name, tmp_path / name)
        size = (tmp_path / name / "__init__.py").stat().st_size
        record.append(f"{name}/__init__.py,,{size}")
    about = tmp_path / "dream_forge-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: dream-forge\nVersion: 1\n")
    (about / "RECORD").write_text("\n".join(record))
    monkeypatch.syspath_prepend(tmp_path)
    for name in PACKAGE_NAMES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    assert find_shadowed_package(tmp_path) is None
    (tmp_path / "runners" / "__init__.py").write_text("# another\n")
    told = find_shadowed_package(tmp_path)
    assert told is not None
    assert told.startswith(f"{tmp_path / 'runners' / '__init__.py'} is not Dream Forge's any more")


def test_our_own_packages_are_ours() -> None:
    assert find_shadowed_package() is None
