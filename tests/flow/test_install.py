"""What `make install` installs: the locked files, to the byte, whatever the folder is called."""

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.kit import project_root

PROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]

[project]
name = "sample-project"
version = "1"
"""
BACKEND = """
import pathlib, shutil

def build_editable(folder, config_settings=None, metadata_directory=None):
    return pathlib.Path(shutil.copy("sample_project-1-py3-none-any.whl", folder)).name
"""


def write_wheel(folder: Path, name: str) -> Path:
    """The wheel of a package that holds one empty module."""
    path = folder / f"{name}-1-py3-none-any.whl"
    files = {
        f"{name}.py": "",
        f"{name}-1.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n",
        f"{name}-1.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    with zipfile.ZipFile(path, "w") as wheel:
        for one, text in files.items():
            wheel.writestr(one, text)
        wheel.writestr(f"{name}-1.dist-info/RECORD", "".join(f"{one},,\n" for one in files))
    return path


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A project with the Makefile of this one, in a folder with a space in its name; its one dependency is a file."""
    tree = tmp_path / "a folder"
    (tree / "requirements").mkdir(parents=True)
    shutil.copy(project_root() / "Makefile", tree)
    (tree / "pyproject.toml").write_text(PROJECT)
    (tree / "backend.py").write_text(BACKEND)
    write_wheel(tree, "sample_project")
    return tree


def lock(tree: Path, digest: str) -> None:
    """Both files, which ask for the dependency by its hash."""
    for name in ("default", "dev"):
        (tree / "requirements" / f"{name}.txt").write_text(f"dependency==1 \\\n    --hash=sha256:{digest}\n")


def make_install(tree: Path, wheels: Path, installer: str) -> subprocess.CompletedProcess[str]:
    """Run `make install` without an index and with empty caches, with uv on the PATH or not."""
    programs = tree.parent / "bin"
    programs.mkdir(exist_ok=True)
    directories = [str(programs), *(one for one in os.get_exec_path() if not os.access(Path(one, "uv"), os.X_OK))]
    if installer == "uv":
        (programs / "uv").unlink(missing_ok=True)
        (programs / "uv").symlink_to(Path(sys.executable).parent / "uv")
    environment = {
        "PATH": os.pathsep.join(directories),
        "HOME": str(tree.parent),
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(wheels),
        "UV_OFFLINE": "1",
        "UV_FIND_LINKS": str(wheels),
    }
    command = ["make", "install", f"PYTHON={sys.executable}"]
    return subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("installer", ["pip", "uv"])
def test_the_locked_files_are_installed_and_nothing_else(tree: Path, tmp_path: Path, installer: str) -> None:
    """Given a file with another hash than the locked one, then the installation fails; with that hash it succeeds."""
    content = write_wheel(tmp_path, "dependency").read_bytes()
    lock(tree, hashlib.sha256(content + b"changed").hexdigest())
    rejected = make_install(tree, tmp_path, installer)
    assert rejected.returncode != 0
    assert "hash" in rejected.stderr.lower()
    assert not (tree / ".venv" / ".installed").exists()
    assert not list((tree / ".venv").rglob("dependency.py"))

    lock(tree, hashlib.sha256(content).hexdigest())
    done = make_install(tree, tmp_path, installer)
    assert done.returncode == 0, done.stderr
    imports = [str(tree / ".venv" / "bin" / "python"), "-c", "import dependency, sample_project"]
    assert subprocess.run(imports, cwd=tmp_path, check=False).returncode == 0
