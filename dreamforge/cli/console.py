"""The output of all commands: exit codes, results as a table or as JSON, and messages on stderr."""

import sys
from collections.abc import Iterable
from typing import NoReturn

import msgspec
from rich.console import Console
from rich.markup import escape
from rich.table import Table

OK, FAILED, INVALID, UNAVAILABLE, NOT_FOUND, CONFLICT = range(6)
INTERRUPTED, BROKEN_PIPE = 130, 141


class PipeConsole(Console):
    """A console that raises `BrokenPipeError` for a closed pipe, where rich would exit with code 1."""

    def on_broken_pipe(self) -> NoReturn:
        """Raise the error that rich has caught."""
        raise BrokenPipeError


def print_result(output_format: str, result: object, renderable: object) -> None:
    """Print a command's result: as JSON if `output_format` is json, else `renderable`, a text or a table."""
    if output_format == "json":
        print(msgspec.json.format(msgspec.json.encode(result)).decode())
        return
    # Without a terminal, a table may be wide.
    console = PipeConsole() if sys.stdout.isatty() else PipeConsole(width=200)
    console.print(renderable, highlight=False)


def plain_table(*columns: str, rows: Iterable[Iterable[object]]) -> Table:
    """A table of texts and numbers, without markup. None is an empty cell."""
    table = Table(*columns, box=None)
    for row in rows:
        table.add_row(*("" if cell is None else escape(str(cell)) for cell in row))
    return table


def print_json_line(result: object) -> None:
    """Print one of several results as a line of JSON, and flush."""
    print(msgspec.json.encode(result).decode(), flush=True)


def print_message(exit_code: int, message: str) -> int:
    """Print a message on stderr; returns the exit code."""
    print(f"dreamforge: {message}", file=sys.stderr)
    return exit_code
