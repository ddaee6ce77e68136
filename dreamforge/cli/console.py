"""How every command of the command line answers: its exit codes, and its output as a table or as JSON."""

import sys
from typing import NoReturn

import msgspec
from rich.console import Console

OK, FAILED, INVALID, UNAVAILABLE, NOT_FOUND, CONFLICT = range(6)
INTERRUPTED, BROKEN_PIPE = 130, 141


class PipeConsole(Console):
    """A console that hands a closed pipe on to its caller, where rich would exit with code 1."""

    def on_broken_pipe(self) -> NoReturn:
        """Raise what rich has caught."""
        raise BrokenPipeError


def print_answer(output: str, answer: object, shown: object) -> None:
    """Print a command's answer: as it is where `output` is json, else what is shown of it to people."""
    if output == "json":
        print(msgspec.json.format(msgspec.json.encode(answer)).decode())
        return
    # Where nobody's terminal sets a width, a table may be as wide as it likes.
    console = PipeConsole() if sys.stdout.isatty() else PipeConsole(width=200)
    console.print(shown, highlight=False)


def print_line(answer: object) -> None:
    """Print one of many answers as a line of JSON, at once."""
    print(msgspec.json.encode(answer).decode(), flush=True)


def complain(code: int, message: str) -> int:
    """Say on stderr what went wrong; returns the exit code."""
    print(f"dreamforge: {message}", file=sys.stderr)
    return code
