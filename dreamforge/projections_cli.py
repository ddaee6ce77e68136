"""The arguments of `dreamforge projections`."""

import argparse

from dreamforge import arguments
from dreamforge.settings import Settings


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to those of `dreamforge`."""
    projections = commands.add_parser(
        "projections", help="how far the read models have come; hold them against the log"
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
    for action, parser in actions.choices.items():
        parser.set_defaults(handler=_run, action=action)


def _run(args: argparse.Namespace, found: Settings) -> int:
    from dreamforge import projection_commands  # noqa: PLC0415 - `dreamforge jobs` starts without the services' imports

    return projection_commands.run(args, found)
