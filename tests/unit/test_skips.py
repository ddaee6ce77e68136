"""A skipped test that nobody listed fails the session."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kit import project_root

SESSION = "import sys, pytest; from tests.skips import Skips; sys.exit(pytest.main(sys.argv[1:], plugins=[Skips()]))"


@pytest.mark.parametrize("skip", ["pytest.skip('too slow today')", "pytest.importorskip('absent_module')"])
@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_skip_that_is_not_listed_fails_the_session(tmp_path: Path, skip: str, workers: str) -> None:
    text = f"import pytest\n\ndef test_one() -> None:\n    {skip}\n\ndef test_two() -> None: pass\n"
    done = _run(tmp_path, text, workers)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "skipped, and not listed in tests/skips.py" in done.stdout
    assert "test_sample.py::test_one: " in done.stdout


def test_a_module_that_skips_itself_fails_the_session(tmp_path: Path) -> None:
    done = _run(tmp_path, "import pytest\npytest.skip('not today', allow_module_level=True)\n", "0")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "not today" in done.stdout


def test_a_listed_skip_passes_for_its_own_reason_alone(tmp_path: Path) -> None:
    for reason, code in (("Debian's package pgbouncer is not installed", 0), ("too slow today", 1)):
        text = f"import pytest\n\ndef test_one() -> None:\n    pytest.skip({reason!r})\n"
        assert _run(tmp_path, text, "0", name="tests/flow/test_pooler.py").returncode == code


def test_a_session_without_skips_passes(tmp_path: Path) -> None:
    assert _run(tmp_path, "def test_one() -> None: pass\n", "0").returncode == 0


def _run(folder: Path, text: str, workers: str, *, name: str = "test_sample.py") -> subprocess.CompletedProcess[str]:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)
    (folder / "pytest.ini").write_text("[pytest]\n")
    parallel = ["-p", "xdist", "-n", workers]
    command = [sys.executable, "-c", SESSION, "-q", *parallel, "-c", str(folder / "pytest.ini"), str(folder / name)]
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    return subprocess.run(command, cwd=project_root(), env=environment, capture_output=True, text=True, check=False)
