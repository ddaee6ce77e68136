"""The transcripts of the README, run as they stand."""

import re
import shlex
import subprocess
from collections.abc import Iterator

from tests.kit import Service, project_root

README = (project_root() / "README.md").read_text("utf-8")
BASE = "http://127.0.0.1:8001"


def transcripts() -> Iterator[tuple[str, str]]:
    """Each command of a console block, and what it is said to answer."""
    for block in re.findall(r"^```console\n(.*?)^```$", README, re.MULTILINE | re.DOTALL):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            yield split(part)


def split(part: str) -> tuple[str, str]:
    """A command, which goes on while a quote is open or a line ends in a backslash, and the lines after it."""
    lines = part.splitlines()
    for count in range(1, len(lines) + 1):
        command = "\n".join(lines[:count])
        try:
            shlex.split(command)
        except ValueError:
            continue
        if not command.endswith("\\"):
            return command, "\n".join(lines[count:])
    raise AssertionError(f"no whole command: {part}")


def test_the_readmes_transcripts_are_true(service: Service) -> None:
    """Given its commands one after the other, then each answers what stands there, `…` being anything."""
    found = list(transcripts())
    assert len(found) >= 7
    for command, expected in found:
        assert BASE in command
        done = subprocess.run(
            ["sh", "-c", command.replace(BASE, service.url)], capture_output=True, text=True, check=True
        )
        pattern = ".*?".join(re.escape(piece) for piece in expected.strip().split("…"))
        assert re.fullmatch(pattern, done.stdout.strip(), re.DOTALL), f"$ {command}\n{done.stdout}"
