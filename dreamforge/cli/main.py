"""The command `dreamforge`: the service's roles, a client for its jobs, and the registry of models."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import structlog

from dreamforge import __version__, logs, settings
from dreamforge.cli import arguments, show
from dreamforge.cli.arguments import CommandParser
from dreamforge.cli.console import BROKEN_PIPE, CONFLICT, INTERRUPTED, INVALID, NOT_FOUND, UNAVAILABLE, print_message
from dreamforge.client.responses import AmbiguousId, ApiError, ClientError
from dreamforge.settings import NotConfigured, Settings, SettingsError

_EXIT_CODES_HELP = """\
exit codes:
  0  done; a watched job succeeded, a role stopped when asked to
  1  a job that was waited for did not end as asked; what was verified is not intact, or there was nothing to verify;
     a role could not start, or broke
  2  a wrong argument or setting, or input that the service rejects
  3  the service, or something that it needs, cannot be reached, is named by no setting, or is too busy
  4  no such job, model or key
  5  not as things stand: cancelling or retrying a job that has ended otherwise, an idempotency key of another request
"""

_COMMAND_HELP = {
    "artifact": "show where an image file came from",
    "audit": "show, replay, compare, export and verify histories",
    "doctor": "look at database, queues, object store and clocks; exits with 1 if ill",
    "jobs": "submit and follow jobs, at DF_API_BASE",
    "keys": "make and revoke API keys, in the database itself",
    "models": "register and verify models, in the database itself",
    "outbox": "hold the queues against the log, rebuild or purge them",
    "projections": "how far the read models have come; verify, rebuild, pause them",
    "top": "watch rates, jobs, queues, projections and runners, live; Ctrl-C leaves",
}
"""The commands except the roles. Each is a module of this package."""

_log = structlog.get_logger(__name__)

Handler = Callable[[argparse.Namespace, Settings], int]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code, as `--help` documents it."""
    show.replace_unprintable()
    args = _build_parser().parse_args(argv)
    handler: Handler = args.handler
    is_role = handler is _run_role
    try:
        found, warnings = settings.load_process_settings(args.env_file)
        if is_role:
            logs.configure_logging(found.log_level, found.log_format)
        for warning in warnings:
            _log_or_print_warning(warning, to_log=is_role)
        code = handler(args, found)
        sys.stdout.flush()
    except (SettingsError, ClientError) as error:
        return print_message(_exit_code_of(error), _error_text(error))
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Python flushes stdout again at exit: to /dev/null, so that it cannot fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except OSError as error:
        if is_role or error.filename is None:
            raise
        return print_message(INVALID, f"{error.filename}: {error.strerror}.")
    return code


def _build_parser() -> CommandParser:
    parser = CommandParser(
        prog="dreamforge",
        description="Dream Forge runs image jobs.",
        epilog=_EXIT_CODES_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"dreamforge {__version__}")
    env = parser.add_mutually_exclusive_group()
    env.add_argument(
        "--env-file",
        type=arguments.parse_existing_file,
        default=Path(".env"),
        metavar="FILE",
        help="settings' file, not .env",
    )
    env.add_argument("--no-env-file", dest="env_file", action="store_const", const=None, help="read no file")
    commands = arguments.add_subcommands(parser)
    _add_role_commands(commands)
    for command, about in _COMMAND_HELP.items():
        commands.add_parser(command, help=about, module=f"dreamforge.cli.{command}")
    return parser


def _add_role_commands(commands: "argparse._SubParsersAction[CommandParser]") -> None:
    up = commands.add_parser("up", help="start everything in one process; what no setting names is embedded")
    api = commands.add_parser("api", help="serve the HTTP API")
    for parser in (up, api):
        parser.add_argument("--host", help="the address to listen on (DF_HOST)")
        parser.add_argument("--port", type=arguments.parse_port, help="the port to listen on (DF_PORT)")
    roles = {
        "up": up,
        "api": api,
        "orchestrator": commands.add_parser("orchestrator", help="decide what each job does next"),
        "projector": commands.add_parser("projector", help="keep the read models"),
        "runner": commands.add_parser("runner", help="work on steps: render images"),
    }
    schema = commands.add_parser("schema", help="the database's schema")
    roles["install_schema"] = arguments.add_subcommands(schema).add_parser(
        "install", help="install or migrate it; safe to repeat"
    )
    for role, parser in roles.items():
        parser.set_defaults(handler=_run_role, role=role)


def _run_role(args: argparse.Namespace, settings: Settings) -> int:
    from dreamforge import roles  # noqa: PLC0415 - other commands start faster without its imports

    given = {name: value for name in ("host", "port") if (value := getattr(args, name, None)) is not None}
    start: Callable[[Settings], int] = getattr(roles, args.role)
    return start(msgspec.structs.replace(settings, **given))


def _log_or_print_warning(warning: str, *, to_log: bool) -> None:
    if to_log:
        _log.warning("setting ignored", reason=warning)
    else:
        print(f"dreamforge: warning: {warning}", file=sys.stderr)


def _exit_code_of(error: SettingsError | ClientError) -> int:
    match error:
        case NotConfigured():
            return UNAVAILABLE
        case SettingsError() | AmbiguousId():
            return INVALID
        case ApiError(status=404):
            return NOT_FOUND
        case ApiError(status=409):
            return CONFLICT
        case ApiError(status=status) if status < 500 and status != 429:
            return INVALID
        case _:
            return UNAVAILABLE


def _error_text(error: SettingsError | ClientError) -> str:
    if not isinstance(error, ApiError):
        return str(error)
    field, reason = error.details.get("field"), error.details.get("reason")
    if field == "Authorization":
        return f"{error.message} The key to show is taken from DF_API_KEY."
    if reason and str(reason) in error.message:
        return error.message
    detail = f" ({field}: {reason})" if field and reason else f" ({field})" if field else ""
    return f"{error.message}{detail}"
