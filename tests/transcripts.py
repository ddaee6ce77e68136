"""Transcripts in documents: commands and their expected output, in which `…` matches anything."""

import re
import shlex
from collections.abc import Iterator


def transcripts(document: str) -> Iterator[tuple[str, str]]:
    """Each command of a console block, and its expected output."""
    for block in re.findall(r"^```console\n(.*?)^```$", document, re.MULTILINE | re.DOTALL):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            yield _split(part)


def matches(expected: str, printed: str) -> bool:
    """Whether the output matches. Trailing blanks are ignored."""
    said, found = ("\n".join(line.rstrip() for line in text.strip().splitlines()) for text in (expected, printed))
    return re.fullmatch(".*?".join(map(re.escape, said.split("…"))), found, re.DOTALL) is not None


def _split(part: str) -> tuple[str, str]:
    """A command, which continues while a quote is open or a line ends in a backslash, and its expected output."""
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
