"""A forked `dreamforge` behaves as one that was started."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dreamforge.settings import unconfigured_environ
from tests import processes


@pytest.mark.parametrize("command", [["--version"], ["jobs", "--nonsense"], ["keys", "list"], ["jobs", "list"]])
def test_a_forked_command_prints_and_exits_as_a_started_one(command: list[str]) -> None:
    environ = unconfigured_environ() | {
        "DF_DB_URL": "postgresql://x@127.0.0.1:9/x",
        "DF_API_BASE": "http://127.0.0.1:9",
    }
    started = subprocess.run(
        [sys.executable, "-m", "dreamforge", *command], env=environ, capture_output=True, text=True, check=False
    )
    forked = processes.run(command, environ)
    assert (forked.returncode, forked.stdout) == (started.returncode, started.stdout)
    assert forked.stderr.replace("dreamforge", "") == started.stderr.replace("dreamforge", "")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_forked_process_takes_signals(number: signal.Signals) -> None:
    """Given a command that waits for its input, then it ends as the signal has it."""
    reads, writes = os.pipe()
    process = processes.spawn(["jobs", "create", "--file", "-"], unconfigured_environ(), [reads, writes, writes])
    assert process.poll() is None
    process.send_signal(number)
    assert process.wait(30) == -number
    os.close(reads)
    os.close(writes)


def test_an_environment_that_python_reads_at_its_start_is_not_forked() -> None:
    environ = unconfigured_environ() | {"PYTHONWARNINGS": "error"}
    with Path(os.devnull).open("r+b") as nothing:
        process = processes.spawn(["--version"], environ, [nothing.fileno()] * 3)
        assert isinstance(process, subprocess.Popen)
        assert process.wait(30) == 0


def test_a_shells_command_is_forked_with_the_shells_folder_and_files(tmp_path: Path) -> None:
    """Given a program `dreamforge` on a shell's PATH, then it reads, prints and exits as the real one."""
    programs, folder = tmp_path / "programs", tmp_path / "folder"
    programs.mkdir()
    folder.mkdir()
    (folder / ".env").write_text("DF_API_BASE=nonsense\n")
    program = processes.Command(programs)
    line = 'echo \'{"type": "generate"}\' | dreamforge jobs create --file - 2>told; echo $?'
    real = _typed(line, folder, Path(sys.executable).parent)
    told = (folder / "told").read_text()
    forked = _typed(line, folder, programs)
    program.close()
    assert forked == real
    assert "nonsense" in told
    assert (folder / "told").read_text() == told


def _typed(line: str, folder: Path, programs: Path) -> str:
    environ = unconfigured_environ() | {"PATH": f"{programs}:/usr/bin:/bin"}
    return subprocess.check_output(["sh", "-c", line], cwd=folder, env=environ, text=True)
