"""The transcripts of the documents for auditors and operators, typed one after the other in an empty folder."""

import subprocess
from pathlib import Path

import pytest

from tests import processes
from tests.kit import Service, outside, project_root
from tests.transcripts import matches, transcripts


class Shell:
    """A shell that keeps its variables from one command to the next."""

    _END = "== the command has ended =="

    def __init__(self, folder: Path, **environ: str) -> None:
        self._process = subprocess.Popen(
            ["sh"],
            cwd=folder,
            env=outside() | environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def type(self, command: str) -> str:
        """What a command prints, on either of its outputs."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{command}\necho '{self._END}'\n")
        self._process.stdin.flush()
        lines: list[str] = []
        for line in self._process.stdout:
            if line.rstrip() == self._END:
                return "".join(lines)
            lines.append(line)
        raise AssertionError(f"the shell ended at {command!r}: {''.join(lines)}")

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()


@pytest.mark.parametrize("page", ["auditing.md", "operations.md"])
def test_every_command_prints_what_the_page_shows(page: str, tmp_path: Path) -> None:
    document = (project_root() / "docs" / page).read_text("utf-8")
    found = list(transcripts(document))
    assert len(found) >= 10
    programs, folder = tmp_path / "programs", tmp_path / "folder"
    programs.mkdir()
    folder.mkdir()
    program = processes.Command(programs)
    service = Service("up", {"DF_HOME": str(folder / ".dreamforge"), "DF_FAKE_RUNNER": "1", "DF_PORT": "0"})
    shell = Shell(folder, DF_API_BASE=service.url, PATH=f"{programs}:/usr/bin:/bin")
    try:
        for command, expected in found:
            printed = shell.type(command)
            assert matches(expected, printed), f"$ {command}\n{printed}"
    finally:
        shell.close()
        program.close()
        service.stop()
