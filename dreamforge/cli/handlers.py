"""Runs the handlers of commands that work on the database or the home directly.

Every command file follows one pattern: `add_arguments(parser)` adds its subcommands and, by `set_handlers`, names a
handler for each. A handler prints its answer and returns the exit code.
"""

import argparse
from collections.abc import Callable, Mapping
from functools import partial

from dreamforge import logs
from dreamforge.cli.arguments import Parser
from dreamforge.cli.console import UNAVAILABLE, complain
from dreamforge.embedded import EmbeddedError
from dreamforge.settings import Settings
from eventstore.errors import EventStoreError

Handler = Callable[[argparse.Namespace, Settings], int]
Errors = Mapping[type[Exception], int]
_NONE: Errors = {}
_UNAVAILABLE: Errors = {EmbeddedError: UNAVAILABLE, EventStoreError: UNAVAILABLE}


def set_handlers(
    actions: "argparse._SubParsersAction[Parser]",
    handlers: Mapping[str, Handler],
    errors: Errors = _NONE,
) -> None:
    """Give each subcommand its handler. errors: exit codes of exceptions, the most specific first."""
    for action, handler in handlers.items():
        set_handler(actions.choices[action], handler, errors)


def set_handler(
    parser: argparse.ArgumentParser, handler: Handler, errors: Errors = _NONE, *, log_level: str = "warning"
) -> None:
    """Give a command its handler. log_level: the lowest level of the log lines that it may print."""
    parser.set_defaults(handler=partial(_answer, handler, {**errors, **_UNAVAILABLE}, log_level))


def _answer(handler: Handler, errors: Errors, log_level: str, args: argparse.Namespace, settings: Settings) -> int:
    logs.configure(log_level, settings.log_format)
    try:
        return handler(args, settings)
    except tuple(errors) as error:
        return complain(next(code for kind, code in errors.items() if isinstance(error, kind)), str(error))
