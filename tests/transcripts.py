"""Transcripts in documents: commands and what they are said to print, `…` being anything."""

import re
import shlex
from collections.abc import Iterator


def transcripts(document: str) -> Iterator[tuple[str, str]]:
    """Each command of a console block, and what it is said to answer."""
    for block in re.findall(r"^```console\n(.*?)^```$", document, re.MULTILINE | re.DOTALL):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            yield _split(part)


def matches(expected: str, printed: str) -> bool:
    """Is this what was said? Blanks at the ends of lines don't count."""
    said, found = ("\n".join(line.rstrip() for line in text.strip().splitlines()) for text in (expected, printed))
    return re.fullmatch(".*?".join(map(re.escape, said.split("…"))), found, re.DOTALL) is not None


def _split(part: str) -> tuple[str, str]:
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
