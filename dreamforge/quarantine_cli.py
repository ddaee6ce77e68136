"""The arguments of `dreamforge jobs quarantine`."""

import argparse

from dreamforge import arguments
from dreamforge.settings import Settings


def add(actions: "argparse._SubParsersAction[argparse.ArgumentParser]", output: argparse.ArgumentParser) -> None:
    """Add the command to those of `dreamforge jobs`."""
    about = "see and release jobs that were set aside since their history can't be read (needs DF_DB_URL or the home)"
    parser = actions.add_parser("quarantine", help=about, description=about)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    one = argparse.ArgumentParser(add_help=False)
    one.add_argument("job_id", metavar="ID", type=arguments.job_id)

    listed = commands.add_parser("list", parents=[output], help="the jobs that are set aside")
    listed.add_argument("--all", action="store_true", help="those that were left failed, too")
    commands.add_parser("show", parents=[output, one], help="one of them")
    commands.add_parser("release", parents=[output, one], help="let it go on, with a release that can read it")
    commands.add_parser("fail", parents=[output, one], help="leave it failed for good")
    for action, command in commands.choices.items():
        command.set_defaults(handler=_run, action=action)


def _run(args: argparse.Namespace, found: Settings) -> int:
    from dreamforge import quarantine_commands  # noqa: PLC0415 - `dreamforge jobs` starts without the services' imports

    return quarantine_commands.run(args, found)
