"""The arguments of `dreamforge artifact`."""

import argparse

from dreamforge import arguments
from dreamforge.settings import Settings


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to those of `dreamforge`."""
    artifact = commands.add_parser("artifact", help="show where an image file came from")
    actions = artifact.add_subparsers(title="commands", metavar="COMMAND", required=True)
    show = actions.add_parser("show", help="the lineage within a PNG or JPEG: prompt, seed, model, versions, parent")
    show.add_argument("file", type=arguments.file, metavar="FILE", help="an image that a job wrote")
    show.add_argument("--output", choices=("table", "json"), default="table", help="the form of the answer")
    show.set_defaults(handler=_run)


def _run(args: argparse.Namespace, found: Settings) -> int:
    from dreamforge import artifact_commands  # noqa: PLC0415 - `dreamforge jobs` starts without the services' imports

    return artifact_commands.show(args, found)
