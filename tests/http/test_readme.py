"""The transcripts of the README, run as they stand."""

import subprocess

from tests.kit import Service, project_root
from tests.transcripts import matches, transcripts

README = (project_root() / "README.md").read_text("utf-8")
BASE = "http://127.0.0.1:8001"


def test_the_readmes_transcripts_are_true(service: Service) -> None:
    """Given its commands one after the other, then each answers what stands there, `…` being anything."""
    found = list(transcripts(README))
    assert len(found) >= 7
    for command, expected in found:
        assert BASE in command
        done = subprocess.run(
            ["sh", "-c", command.replace(BASE, service.url)], capture_output=True, text=True, check=True
        )
        assert matches(expected, done.stdout), f"$ {command}\n{done.stdout}"
