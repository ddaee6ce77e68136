"""The arguments of `dreamforge audit`."""

import argparse
import re
from datetime import datetime
from pathlib import Path
from uuid import UUID

from dreamforge import arguments
from dreamforge.settings import Settings


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to those of `dreamforge`."""
    audit = commands.add_parser("audit", help="show, replay, compare, export and verify histories")
    actions = audit.add_subparsers(title="commands", metavar="COMMAND", required=True)
    output = argparse.ArgumentParser(add_help=False)
    output.add_argument("--output", choices=("table", "json"), default="table", help="the form of the answer")
    output.add_argument("--json", dest="output", action="store_const", const="json", help="the same as --output json")

    show = actions.add_parser("show", parents=[output], help="a job's history, and what it had come to")
    _add_job(show)
    show.add_argument(
        "--at", type=_point, metavar="VERSION|TIME", help="as it was after this version, or at this time; not as it is"
    )
    replay = actions.add_parser(
        "replay", parents=[output], help="fold a job's history event by event, and hold the read model against it"
    )
    _add_job(replay)
    diff = actions.add_parser("diff", parents=[output], help="what changed about a job between two of its versions")
    _add_job(diff)
    for name, default in (("before", "A"), ("after", "B")):
        diff.add_argument(name, type=_version, metavar=default, help="a version; 0 is before the job was there")
    verify = actions.add_parser(
        "verify", parents=[output], help="hold every event against its hash chains; exits with 1 if one does not fit"
    )
    verified = verify.add_mutually_exclusive_group(required=True)
    verified.add_argument("target", nargs="?", type=_target, metavar="JOB|BUNDLE", help="one job, or an exported file")
    verified.add_argument("--all", action="store_true", help="the whole log")
    verify.add_argument(
        "--anchor",
        dest="anchors",
        action="append",
        default=[],
        type=arguments.file,
        metavar="FILE",
        help="hold it against this anchor too; may be repeated",
    )
    verify.add_argument(
        "--key",
        dest="keys",
        action="append",
        default=[],
        type=_public_key,
        metavar="HEX",
        help="whose anchors to trust; may be repeated (the public key of DF_ANCHOR_KEY)",
    )
    verify.add_argument("--artifacts", action="store_true", help="read every image too, its size and SHA-256")
    export = actions.add_parser(
        "export", parents=[output], help="write histories into a file that verifies with no database"
    )
    exported = export.add_mutually_exclusive_group(required=True)
    exported.add_argument("job", nargs="?", type=_job, metavar="JOB", help="one job")
    exported.add_argument("--since", type=arguments.moment, metavar="TIME", help="all that was recorded since")
    export.add_argument("--private", action="store_true", help="with prompts and metadata: erasure can't reach them")
    export.add_argument(
        "-o", dest="file", type=Path, required=True, metavar="FILE", help="where to write it; - for stdout"
    )
    erase = actions.add_parser(
        "erase", parents=[output], help="take the prompts and metadata of jobs that have ended away, for good"
    )
    erase.add_argument("jobs", nargs="+", type=_job, metavar="JOB", help="the job's id")
    actions.add_parser(
        "scrub", parents=[output], help="write the tables anew, so that nothing erased stays in the database's files"
    )
    reproduce = actions.add_parser(
        "reproduce", parents=[output], help="render a job's images again, and compare; exits with 1 if one differs"
    )
    _add_job(reproduce)
    actions.add_parser("anchor", help="sign the log's heads; the anchor is printed, and kept in the log and in S3")
    key = actions.add_parser("key", help="make a key that signs anchors, and print its public half")
    key.add_argument("file", type=Path, metavar="FILE", help="where to write it; name it in DF_ANCHOR_KEY")
    for action, parser in actions.choices.items():
        parser.set_defaults(handler=_run, action=action)


def _add_job(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job", type=_job, metavar="JOB", help="the job's id")


def _job(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no id of a job") from None


def _version(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise argparse.ArgumentTypeError(f"{text!r} is no version; it must be a whole number from 0 on")
    return int(text)


def _point(text: str) -> int | datetime:
    return _version(text) if text.isdigit() else arguments.moment(text)


def _target(text: str) -> UUID | Path:
    try:
        return UUID(text)
    except ValueError:
        if not Path(text).is_file():
            raise argparse.ArgumentTypeError(f"{text!r} is neither the id of a job nor a file") from None
        return Path(text)


def _public_key(text: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{64}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no public key; it has 64 of 0-9 and a-f")
    return text


def _run(args: argparse.Namespace, found: Settings) -> int:
    from dreamforge import audit_commands  # noqa: PLC0415 - `dreamforge jobs` starts without the services' imports

    return audit_commands.run(args, found)
