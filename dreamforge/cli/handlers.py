"""Runs the handlers of commands that use the database or the home directly.

Every command module has `add_arguments(parser)`, which adds its subcommands and sets a handler for each with
`set_handlers`. A handler prints its result and returns the exit code.
"""

import argparse
from collections.abc import Callable, Mapping
from functools import partial

from dreamforge import logs
from dreamforge.cli.arguments import CommandParser
from dreamforge.cli.console import UNAVAILABLE, print_message
from dreamforge.embedded import EmbeddedError
from dreamforge.settings import Settings
from eventstore.errors import EventStoreError

Handler = Callable[[argparse.Namespace, Settings], int]
ExitCodeByError = Mapping[type[Exception], int]
_NO_ERRORS: ExitCodeByError = {}
_UNAVAILABLE_ERRORS: ExitCodeByError = {EmbeddedError: UNAVAILABLE, EventStoreError: UNAVAILABLE}


def set_handlers(
    actions: "argparse._SubParsersAction[CommandParser]",
    handlers: Mapping[str, Handler],
    errors: ExitCodeByError = _NO_ERRORS,
) -> None:
    """Set the handler of each subcommand. errors: exit codes by exception, the most specific first."""
    for action, handler in handlers.items():
        set_handler(actions.choices[action], handler, errors)


def set_handler(
    parser: argparse.ArgumentParser,
    handler: Handler,
    errors: ExitCodeByError = _NO_ERRORS,
    *,
    log_level: str = "warning",
) -> None:
    """Set the handler of a command. log_level: the lowest level of log lines that it prints."""
    parser.set_defaults(handler=partial(_run_handler, handler, {**errors, **_UNAVAILABLE_ERRORS}, log_level))


def _run_handler(
    handler: Handler, errors: ExitCodeByError, log_level: str, args: argparse.Namespace, settings: Settings
) -> int:
    logs.configure_logging(log_level, settings.log_format)
    try:
        return handler(args, settings)
    except tuple(errors) as error:
        return print_message(next(code for kind, code in errors.items() if isinstance(error, kind)), str(error))
