"""The arguments of `dreamforge outbox`."""

import argparse

from dreamforge.settings import Settings


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to those of `dreamforge`."""
    outbox = commands.add_parser("outbox", help="hold the queues against the log, rebuild or purge them")
    actions = outbox.add_subparsers(title="commands", metavar="COMMAND", required=True)
    output = argparse.ArgumentParser(add_help=False)
    output.add_argument("--output", choices=("table", "json"), default="table", help="the form of the answer")

    actions.add_parser("status", parents=[output], help="compare the queues with the pending commands of the log")
    rebuild = actions.add_parser("rebuild", parents=[output], help="send pending commands that no queue holds")
    rebuild.add_argument("--dry-run", action="store_true", help="only show what would be sent")
    purge = actions.add_parser(
        "purge", parents=[output], help="delete every command; rebuild sends the pending ones again"
    )
    purge.add_argument("--yes", action="store_true", help="do it; without this it is only shown")
    for action, parser in actions.choices.items():
        parser.set_defaults(handler=_run, action=action)


def _run(args: argparse.Namespace, found: Settings) -> int:
    from dreamforge import outbox_commands  # noqa: PLC0415 - `dreamforge jobs` starts without the services' imports

    return outbox_commands.run(args, found)
