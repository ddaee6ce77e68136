"""The arguments of `dreamforge projections`."""

import argparse
import os

from dreamforge import arguments
from dreamforge.settings import Settings


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to those of `dreamforge`."""
    projections = commands.add_parser(
        "projections", help="how far the read models have come; verify, rebuild, pause them"
    )
    actions = projections.add_subparsers(title="commands", metavar="COMMAND", required=True)
    output = argparse.ArgumentParser(add_help=False)
    output.add_argument("--output", choices=("table", "json"), default="table", help="the form of the answer")
    output.add_argument("--json", dest="output", action="store_const", const="json", help="the same as --output json")

    status = actions.add_parser("status", parents=[output], help="each projection's place, lag and rate, by partition")
    status.add_argument(
        "--seconds", type=arguments.amount, default=1, metavar="N", help="for how long to watch, for the rate (1)"
    )
    verify = actions.add_parser(
        "verify", parents=[output], help="fold every job anew and compare; exits with 1 if a row says something else"
    )
    verify.add_argument(
        "--first", type=arguments.amount, default=10, metavar="N", help="how many disagreements to show (10)"
    )
    rebuild = actions.add_parser(
        "rebuild", parents=[output], help="build a projection anew beside the one that serves, and swap the two"
    )
    what = rebuild.add_mutually_exclusive_group()
    what.add_argument("--dry-run", action="store_true", help="only say what would be done")
    what.add_argument("--abort", action="store_true", help="give up a rebuild or rollback that is under way")
    rebuild.add_argument(
        "--workers", type=arguments.amount, default=os.cpu_count() or 1, metavar="N", help="processes (one a core)"
    )
    rollback = actions.add_parser(
        "rollback", parents=[output], help="bring back the projection that served before the last rebuild"
    )
    pause = actions.add_parser("pause", parents=[output], help="pause a projection; reads of a job stay fresh")
    resume = actions.add_parser("resume", parents=[output], help="let a paused projection go on")
    for parser in (rebuild, rollback, pause, resume):
        parser.add_argument("name", nargs="?", choices=["readmodel"], default="readmodel", help="which (readmodel)")
    for action, parser in actions.choices.items():
        parser.set_defaults(handler=_run, action=action)


def _run(args: argparse.Namespace, found: Settings) -> int:
    from dreamforge import projection_commands  # noqa: PLC0415 - `dreamforge jobs` starts without the services' imports

    return projection_commands.run(args, found)
