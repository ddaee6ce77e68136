"""The arguments of `dreamforge keys`."""

import argparse
from typing import get_args

from dreamforge import arguments
from dreamforge.settings import Settings
from eventstore.events import Scope
from eventstore.log import DEFAULT_TENANT
from projections.keys import TENANT


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to those of `dreamforge`."""
    keys = commands.add_parser("keys", help="make and revoke API keys, in the database itself")
    actions = keys.add_subparsers(title="commands", metavar="COMMAND", required=True)
    output = argparse.ArgumentParser(add_help=False)
    output.add_argument("--output", choices=("table", "json"), default="table", help="the form of the answer")

    new = actions.add_parser("create", parents=[output], help="make a key; it is shown this once")
    new.add_argument("name", metavar="NAME", type=_name, help="what to call it, such as who will hold it")
    new.add_argument("--tenant", type=_tenant, default=DEFAULT_TENANT, help=f"whose jobs it opens ({DEFAULT_TENANT})")
    new.add_argument(
        "--scopes",
        type=_scopes,
        default=["jobs"],
        metavar="SCOPE,…",
        help="jobs: submit, follow, cancel, retry; audit: read jobs and the log; admin: operate (jobs)",
    )
    listed = actions.add_parser("list", parents=[output], help="list the keys, without what opens anything")
    listed.add_argument("--tenant", type=_tenant, help="only those of one tenant")
    listed.add_argument("--all", action="store_true", help="those that were revoked, too")
    revoke = actions.add_parser("revoke", parents=[output], help="let a key open nothing any more")
    revoke.add_argument("key", metavar="ID", help="its id, or its name if no other key has it")
    for action, parser in actions.choices.items():
        parser.set_defaults(handler=_run, action=action)


def _name(text: str) -> str:
    name = arguments.unicode_text(text)
    if not (name.isprintable() and 1 <= len(name) <= 100):
        raise argparse.ArgumentTypeError("a name has 1 to 100 printable characters")
    return name


def _tenant(text: str) -> str:
    if not TENANT.fullmatch(text):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no tenant; it has 1 to 63 of a-z, 0-9 and -, and begins without -"
        )
    return text


def _scopes(text: str) -> list[Scope]:
    given = [name.strip() for name in text.split(",")]
    unknown = sorted(set(given) - set(get_args(Scope)))
    if unknown:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is no scope; there are {', '.join(get_args(Scope))}")
    return [scope for scope in get_args(Scope) if scope in given]


def _run(args: argparse.Namespace, found: Settings) -> int:
    from dreamforge import key_commands  # noqa: PLC0415 - `dreamforge jobs` starts without the services' imports

    return key_commands.run(args, found)
