"""The arguments of `dreamforge models`."""

import argparse
from typing import get_args

from dreamforge import arguments
from dreamforge.settings import Settings
from eventstore.events import ModelKind


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to those of `dreamforge`."""
    models = commands.add_parser("models", help="register and verify models, in the database itself")
    actions = models.add_subparsers(title="commands", metavar="COMMAND", required=True)
    output = argparse.ArgumentParser(add_help=False)
    output.add_argument("--output", choices=("table", "json"), default="table", help="the form of the answer")
    one = argparse.ArgumentParser(add_help=False)
    one.add_argument("model", metavar="ID", help="the model's id, or its name if no other has it")

    new = actions.add_parser(
        "add", parents=[output], help="register a folder or file, or fetch and register a repository"
    )
    new.add_argument(
        "path", metavar="PATH", help="the folder or file, or hf:REPOSITORY[@REVISION][#FILE] of Hugging Face's hub"
    )
    new.add_argument("--kind", required=True, choices=get_args(ModelKind), help="what it does")
    new.add_argument("--name", type=arguments.unicode_text, help="what to call it; like PATH unless given")
    new.add_argument("--version", type=arguments.unicode_text, help="the beginning of its files' digest unless given")
    new.add_argument(
        "--parameters-schema",
        type=arguments.file,
        metavar="FILE",
        help="the JSON Schema of what may be asked of it; the bounds of a request unless given",
    )
    new.add_argument("--copy", action="store_true", help="copy the folder or file into DF_MODELS_DIR first")
    new.add_argument(
        "--trust", action="store_true", help="let in files that may run code when they are opened (pickles)"
    )
    new.add_argument("--disabled", action="store_true", help="let no job use it yet")
    listed = actions.add_parser("list", parents=[output], help="list the models that jobs may use")
    listed.add_argument("--all", action="store_true", help="those that are disabled or damaged, too")
    actions.add_parser("show", parents=[output, one], help="show a model and its files")
    verify = actions.add_parser("verify", parents=[output], help="read a model's files again; exit 1 if any is damaged")
    verify.add_argument("model", metavar="ID", nargs="?", help="its id or name; every model if not given")
    actions.add_parser("enable", parents=[output, one], help="let jobs use a model")
    actions.add_parser("disable", parents=[output, one], help="keep new jobs from using a model")
    for action, parser in actions.choices.items():
        parser.set_defaults(handler=_run, action=action)


def _run(args: argparse.Namespace, found: Settings) -> int:
    from dreamforge import model_commands  # noqa: PLC0415 - `dreamforge jobs` starts without the services' imports

    return model_commands.run(args, found)
