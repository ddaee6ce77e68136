"""The command `dreamforge`: the service's roles, and a client for its jobs."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

import msgspec
import structlog
from rich.console import Console

from dreamforge import __version__, logs, settings, show
from dreamforge.client import ApiError, Client, ClientError, JsonObject
from dreamforge.settings import Settings, SettingsError

OK, JOB_FAILED, INVALID, UNAVAILABLE, NOT_FOUND = range(5)
INTERRUPTED, BROKEN_PIPE = 130, 141

_EXIT_CODES = """\
exit codes:
  0  done; a watched job succeeded, a role stopped when asked to
  1  a watched job failed or was cancelled; a role could not start, or broke
  2  a wrong argument or setting, or input that the service refuses
  3  the service, or something that it needs, cannot be reached
  4  no such job
"""

_log = structlog.get_logger(__name__)

Handler = Callable[[argparse.Namespace, Settings], int]


class PipeConsole(Console):
    """A console that hands a closed pipe on to its caller, where rich would exit with code 1."""

    def on_broken_pipe(self) -> NoReturn:
        """Raise what rich has caught."""
        raise BrokenPipeError


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
    except SettingsError as error:
        return _complain(INVALID, str(error))
    except ApiError as error:
        return _complain(_code_of(error), _told(error))
    except ClientError as error:
        return _complain(UNAVAILABLE, str(error))
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Python flushes stdout once more at exit: into nothing then, so that it cannot fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    return code


def unicode_text(text: str) -> str:
    """An argument that is sound Unicode; a terminal of another encoding, or a stray byte, makes lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError("this is not valid UTF-8") from None
    return text


def image_size(text: str) -> tuple[int, int]:
    """Width and height from `512` or `640x384`."""
    width, _, height = text.lower().partition("x")
    if not (text.isascii() and width.isdigit() and (height.isdigit() or text.isdigit())):
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write it like 512 or 640x384")
    return int(width), int(height or width)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dreamforge",
        description="Dream Forge runs image jobs: generate, then upscale.",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"dreamforge {__version__}")
    env = parser.add_mutually_exclusive_group()
    env.add_argument("--env-file", type=_file, default=Path(".env"), metavar="FILE", help="settings' file, not .env")
    env.add_argument("--no-env-file", dest="env_file", action="store_const", const=None, help="read no file")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_roles(commands)
    _add_jobs(commands)
    return parser


def _add_roles(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    up = commands.add_parser("up", help="start everything in one process; what no setting names is embedded")
    api = commands.add_parser("api", help="serve the HTTP API")
    for parser in (up, api):
        parser.add_argument("--host", help="the address to listen on (DF_HOST)")
        parser.add_argument("--port", type=_port, help="the port to listen on (DF_PORT)")
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


def _add_jobs(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    jobs = commands.add_parser("jobs", help="submit and follow jobs, at DF_API_BASE")
    actions = jobs.add_subparsers(title="commands", metavar="COMMAND", required=True)
    output = argparse.ArgumentParser(add_help=False)
    output.add_argument("--output", choices=("table", "json"), default="table", help="the form of the answer")
    one = argparse.ArgumentParser(add_help=False)
    one.add_argument("job_id", metavar="ID", type=_job_id)

    create = actions.add_parser("create", parents=[output], help="submit a job")
    _add_request(create)
    create.add_argument("--watch", action="store_true", help="follow the job to its end")
    create.set_defaults(handler=_create)
    shown = actions.add_parser("show", parents=[output, one], help="show a job and its steps")
    shown.set_defaults(handler=_show)
    watch = actions.add_parser("watch", parents=[output, one], help="follow a job to its end")
    watch.set_defaults(handler=_watch)
    artifacts = actions.add_parser("artifacts", parents=[output, one], help="list a job's artifacts")
    artifacts.add_argument("--download", type=Path, metavar="DIR", help="download them to DIR/<step>/")
    artifacts.set_defaults(handler=_artifacts)


def _add_request(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--prompt", required=True, type=unicode_text, help="what to paint")
    parser.add_argument("--negative-prompt", type=unicode_text, metavar="TEXT", help="what to avoid")
    parser.add_argument("--count", type=int, metavar="N", help="how many images")
    parser.add_argument("--size", type=image_size, metavar="SIZE", help="like 512 or 640x384")
    parser.add_argument("--steps", type=int, metavar="N", help="sampling steps")
    parser.add_argument("--guidance", type=float, metavar="X", help="how closely to follow the prompt")
    parser.add_argument("--seed", type=int, metavar="N", help="the same seed gives the same images")
    parser.add_argument("--format", choices=("png", "jpg"), help="the form of the images")
    parser.add_argument("--scale", type=int, metavar="N", help="chain an upscale by 2 or 4")


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


def _create(args: argparse.Namespace, found: Settings) -> int:
    with Client(found.api_base) as client:
        job = client.create_job(_request(args))
        if args.watch:
            return _follow(client, job["id"], args.output)
        _print(args.output, job, f"Job {job['id']} is {job['status']}.")
        return OK


def _request(args: argparse.Namespace) -> JsonObject:
    names = ("prompt", "negative_prompt", "count", "steps", "guidance", "seed", "format")
    width, height = args.size or (None, None)
    fields = {name: getattr(args, name) for name in names} | {"width": width, "height": height}
    request: JsonObject = {"type": "generate"} | {name: value for name, value in fields.items() if value is not None}
    return request if args.scale is None else request | {"chain": {"upscale": {"scale": args.scale}}}


def _show(args: argparse.Namespace, found: Settings) -> int:
    with Client(found.api_base) as client:
        job = client.job(args.job_id)
        _print(args.output, job, show.job_table(job))
        return OK


def _watch(args: argparse.Namespace, found: Settings) -> int:
    with Client(found.api_base) as client:
        return _follow(client, args.job_id, args.output)


def _follow(client: Client, job_id: str, output: str) -> int:
    status = show.follow(client.job(job_id), client.stream(job_id), PipeConsole(stderr=True))
    job = client.job(job_id)
    _print(output, job, show.job_table(job))
    return OK if status == "succeeded" else JOB_FAILED


def _artifacts(args: argparse.Namespace, found: Settings) -> int:
    with Client(found.api_base) as client:
        artifacts = client.artifacts(args.job_id)
        _print(args.output, artifacts, show.artifact_table(artifacts))
        for artifact in artifacts if args.download else ():
            folder = args.download / artifact["step"]
            folder.mkdir(parents=True, exist_ok=True)
            print(client.download(artifact, folder), file=sys.stderr)
        return OK


def _print(output: str, answer: object, shown: object) -> None:
    if output == "json":
        print(msgspec.json.format(msgspec.json.encode(answer)).decode())
        return
    # Where nobody's terminal sets a width, a table may be as wide as it likes.
    console = PipeConsole() if sys.stdout.isatty() else PipeConsole(width=200)
    console.print(shown, highlight=False)


def _warn(warning: str, *, logged: bool) -> None:
    if logged:
        _log.warning("setting ignored", reason=warning)
    else:
        print(f"dreamforge: warning: {warning}", file=sys.stderr)


def _complain(code: int, message: str) -> int:
    print(f"dreamforge: {message}", file=sys.stderr)
    return code


def _code_of(error: ApiError) -> int:
    if error.status == 404:
        return NOT_FOUND
    return INVALID if error.status < 500 else UNAVAILABLE


def _told(error: ApiError) -> str:
    field, reason = error.details.get("field"), error.details.get("reason")
    if reason and str(reason) in error.message:
        return error.message
    place = f" ({field}: {reason})" if field and reason else f" ({field})" if field else ""
    return f"{error.message}{place}"


def _file(text: str) -> Path:
    if not Path(text).is_file():
        raise argparse.ArgumentTypeError(f"there is no file {text!r}")
    return Path(text)


def _port(text: str) -> int | None:
    # make passes an empty PORT where none is given
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and int(text) <= 65535):
        raise argparse.ArgumentTypeError(f"{text!r} is no port; it must be a whole number from 0 to 65535")
    return int(text)


def _job_id(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("the id is empty")
    return text
