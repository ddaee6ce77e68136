"""The command `dreamforge`: the service's roles, a client for its jobs, and the registry of models."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import structlog

from dreamforge import (
    __version__,
    arguments,
    artifact_cli,
    audit_cli,
    jobs_cli,
    keys_cli,
    logs,
    models_cli,
    outbox_cli,
    projections_cli,
    settings,
    show,
)
from dreamforge.client import Ambiguous, ApiError, ClientError
from dreamforge.console import BROKEN_PIPE, CONFLICT, INTERRUPTED, INVALID, NOT_FOUND, UNAVAILABLE, complain
from dreamforge.settings import NotConfigured, Settings, SettingsError

_EXIT_CODES = """\
exit codes:
  0  done; a watched job succeeded, a role stopped when asked to
  1  a job that was waited for did not end as asked; what was verified is not intact, or there was nothing to verify;
     a role could not start, or broke
  2  a wrong argument or setting, or input that the service refuses
  3  the service, or something that it needs, cannot be reached, is named by no setting, or is too busy
  4  no such job, model or key
  5  not as things stand: cancelling or retrying a job that has ended otherwise, an idempotency key of another request
"""

_log = structlog.get_logger(__name__)

Handler = Callable[[argparse.Namespace, Settings], int]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code, as `--help` documents it."""
    show.replace_unprintable()
    args = _parser().parse_args(argv)
    handler: Handler = args.handler
    try:
        found, warnings = settings.from_process(args.env_file)
        if handler is _run_role:
            logs.configure(found.log_level, found.log_format)
        for warning in warnings:
            _warn(warning, logged=handler is _run_role)
        code = handler(args, found)
        sys.stdout.flush()
    except (SettingsError, ClientError) as error:
        return complain(_code_of(error), _told(error))
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Python flushes stdout once more at exit: into nothing then, so that it cannot fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except OSError as error:
        if handler is _run_role or error.filename is None:
            raise
        return complain(INVALID, f"{error.filename}: {error.strerror}.")
    return code


def _parser() -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = arguments.Parser(
        prog="dreamforge",
        description="Dream Forge runs image jobs: generate, then upscale.",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"dreamforge {__version__}")
    env = parser.add_mutually_exclusive_group()
    env.add_argument(
        "--env-file", type=arguments.file, default=Path(".env"), metavar="FILE", help="settings' file, not .env"
    )
    env.add_argument("--no-env-file", dest="env_file", action="store_const", const=None, help="read no file")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_roles(commands)
    artifact_cli.add(commands)
    audit_cli.add(commands)
    _add_doctor(commands)
    jobs_cli.add(commands)
    keys_cli.add(commands)
    models_cli.add(commands)
    outbox_cli.add(commands)
    projections_cli.add(commands)
    _add_top(commands)
    return parser


def _add_roles(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    up = commands.add_parser("up", help="start everything in one process; what no setting names is embedded")
    api = commands.add_parser("api", help="serve the HTTP API")
    for parser in (up, api):
        parser.add_argument("--host", help="the address to listen on (DF_HOST)")
        parser.add_argument("--port", type=arguments.port, help="the port to listen on (DF_PORT)")
    roles = {
        "up": up,
        "api": api,
        "orchestrator": commands.add_parser("orchestrator", help="decide what each job does next"),
        "projector": commands.add_parser("projector", help="keep the read models"),
        "runner": commands.add_parser("runner", help="work on steps: generate and upscale images"),
    }
    for role, parser in roles.items():
        parser.set_defaults(handler=_run_role, role=role)
    schema = commands.add_parser("schema", help="the database's schema")
    schema_commands = schema.add_subparsers(title="commands", metavar="COMMAND", required=True)
    install = schema_commands.add_parser("install", help="install or migrate it; safe to repeat")
    install.set_defaults(handler=_run_role, role="install_schema")


def _add_doctor(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    doctor = commands.add_parser(
        "doctor", help="look at database, queues, object store and clocks; exits with 1 if ill"
    )
    doctor.add_argument("--output", choices=("table", "json"), default="table", help="the form of the answer")
    doctor.add_argument("--json", dest="output", action="store_const", const="json", help="the same as --output json")
    doctor.set_defaults(handler=_run_doctor)


def _run_doctor(args: argparse.Namespace, found: Settings) -> int:
    from dreamforge import doctor  # noqa: PLC0415 - `dreamforge jobs` starts without the services' imports

    return doctor.run(args, found)


def _add_top(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    top = commands.add_parser("top", help="watch rates, jobs, queues, projections and runners, live; Ctrl-C leaves")
    top.add_argument(
        "--every", type=arguments.amount, default=1, metavar="N", help="seconds from one refresh to the next (1)"
    )
    top.add_argument("--once", action="store_true", help="watch for so long once, print the answer and end")
    top.add_argument(
        "--output", choices=("table", "json"), default="table", help="json: one object a refresh, a line each"
    )
    top.add_argument("--json", dest="output", action="store_const", const="json", help="the same as --output json")
    top.set_defaults(handler=_run_top)


def _run_top(args: argparse.Namespace, found: Settings) -> int:
    from dreamforge import top  # noqa: PLC0415 - `dreamforge jobs` starts without the services' imports

    return top.run(args, found)


def _run_role(args: argparse.Namespace, found: Settings) -> int:
    from dreamforge import roles  # noqa: PLC0415 - `dreamforge jobs` starts without the services' imports

    given = {name: value for name in ("host", "port") if (value := getattr(args, name, None)) is not None}
    starters: dict[str, Callable[[Settings], int]] = {
        "up": roles.up,
        "api": roles.api,
        "orchestrator": roles.orchestrator,
        "projector": roles.projector,
        "runner": roles.runner,
        "install_schema": roles.install_schema,
    }
    return starters[args.role](msgspec.structs.replace(found, **given))


def _warn(warning: str, *, logged: bool) -> None:
    if logged:
        _log.warning("setting ignored", reason=warning)
    else:
        print(f"dreamforge: warning: {warning}", file=sys.stderr)


def _code_of(error: SettingsError | ClientError) -> int:
    match error:
        case NotConfigured():
            return UNAVAILABLE
        case SettingsError() | Ambiguous():
            return INVALID
        case ApiError(status=404):
            return NOT_FOUND
        case ApiError(status=409):
            return CONFLICT
        case ApiError(status=status) if status < 500 and status != 429:
            return INVALID
        case _:
            return UNAVAILABLE


def _told(error: SettingsError | ClientError) -> str:
    if not isinstance(error, ApiError):
        return str(error)
    field, reason = error.details.get("field"), error.details.get("reason")
    if field == "Authorization":
        return f"{error.message} The key to show is taken from DF_API_KEY."
    if reason and str(reason) in error.message:
        return error.message
    detail = f" ({field}: {reason})" if field and reason else f" ({field})" if field else ""
    return f"{error.message}{detail}"
