"""`dreamforge keys`: creates, lists and revokes API keys."""

import argparse
import secrets
from collections.abc import Sequence
from datetime import datetime
from typing import get_args
from uuid import UUID

import msgspec
from rich.markup import escape
from rich.table import Table

from dreamforge.backends import run_with_database, user_at_host
from dreamforge.cli import arguments
from dreamforge.cli.console import INVALID, NOT_FOUND, OK, plain_table, print_message, print_result
from dreamforge.cli.handlers import set_handlers
from dreamforge.settings import Settings
from eventstore.database import Database
from eventstore.ids import new_id
from eventstore.log import DEFAULT_TENANT, Append, Batch, Log
from orchestrator.copying import copy_fields
from orchestrator.events import KeyCreated, KeyEvent, KeyRevoked, Meta, Scope
from orchestrator.service import make_event
from projections.key_queries import ApiKeys
from projections.keys import TENANT_NAME_PATTERN, KeyView, key_text_digest, make_key_text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `dreamforge keys`."""
    actions = arguments.add_subcommands(parser)
    output = arguments.output_option_parser()

    new = actions.add_parser("create", parents=[output], help="make a key; it is shown this once")
    new.add_argument("name", metavar="NAME", type=_parse_key_name, help="what to call it, such as who will hold it")
    new.add_argument(
        "--tenant", type=_parse_tenant, default=DEFAULT_TENANT, help=f"whose jobs it opens ({DEFAULT_TENANT})"
    )
    new.add_argument(
        "--scopes",
        type=_parse_scopes,
        default=["jobs"],
        metavar="SCOPE,…",
        help="jobs: submit, follow, cancel, retry; audit: read jobs and the log; admin: operate (jobs)",
    )
    listed = actions.add_parser("list", parents=[output], help="list the keys, without what opens anything")
    listed.add_argument("--tenant", type=_parse_tenant, help="only those of one tenant")
    listed.add_argument("--all", action="store_true", help="those that were revoked, too")
    revoke = actions.add_parser("revoke", parents=[output], help="let a key open nothing any more")
    revoke.add_argument("key", metavar="ID", help="its id, or its name if no other key has it")
    set_handlers(
        actions, {"create": _create_key, "list": _list_keys, "revoke": _revoke_key}, errors={NoSuchKey: NOT_FOUND}
    )


def _parse_key_name(text: str) -> str:
    name = arguments.parse_unicode_text(text)
    if not (name.isprintable() and 1 <= len(name) <= 100):
        raise argparse.ArgumentTypeError("a name has 1 to 100 printable characters")
    return name


def _parse_tenant(text: str) -> str:
    if not TENANT_NAME_PATTERN.fullmatch(text):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no tenant; it has 1 to 63 of a-z, 0-9 and -, and begins without -"
        )
    return text


def _parse_scopes(text: str) -> list[Scope]:
    given = [name.strip() for name in text.split(",")]
    unknown = sorted(set(given) - set(get_args(Scope)))
    if unknown:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is no scope; there are {', '.join(get_args(Scope))}")
    return [scope for scope in get_args(Scope) if scope in given]


class KeyOutput(msgspec.Struct, frozen=True, kw_only=True):
    """A key in the output."""

    id: UUID
    tenant: str
    name: str
    scopes: list[Scope]
    created_at: datetime
    revoked_at: datetime | None


class NewKeyOutput(msgspec.Struct, frozen=True, kw_only=True):
    """A new key in the output. key: the text that clients send, which is shown only here."""

    id: UUID
    tenant: str
    name: str
    scopes: list[Scope]
    key: str


class NoSuchKey(Exception):
    """There is no such key, or more than one; the message says which."""


def _create_key(args: argparse.Namespace, settings: Settings) -> int:
    key_id = new_id()
    text = make_key_text(key_id, secrets.token_urlsafe(32))
    body = KeyCreated(name=args.name, scopes=args.scopes, digest=key_text_digest(text))

    async def create(database: Database) -> bool:
        known = await ApiKeys(Log(database)).list_keys()
        if any((key.tenant, key.name, key.is_active) == (args.tenant, args.name, True) for key in known):
            return False
        await _append_key_event(database, args.tenant, key_id, 0, body)
        return True

    if not run_with_database(settings, "keys", create):
        return print_message(
            INVALID, f"tenant {args.tenant} has a key called {args.name!r}; revoke it, or choose another name."
        )
    new_key = NewKeyOutput(id=key_id, tenant=args.tenant, name=args.name, scopes=args.scopes, key=text)
    print_result(args.output, new_key, f"{escape(text)}\n\nThis is shown once. Send it as `Authorization: Bearer …`.")
    return OK


def _list_keys(args: argparse.Namespace, settings: Settings) -> int:
    found = run_with_database(settings, "keys", lambda database: ApiKeys(Log(database)).list_keys())
    shown = [key for key in found if args.tenant in {None, key.tenant} and (args.all or key.is_active)]
    print_result(args.output, [_key_output(key) for key in shown], _keys_table(shown))
    return OK


def _revoke_key(args: argparse.Namespace, settings: Settings) -> int:
    async def revoke(database: Database) -> KeyView:
        keys = ApiKeys(Log(database))
        found = _select_key(await keys.list_keys(), args.key)
        if found.is_active:
            await _append_key_event(database, found.tenant, found.key_id, found.stream_version, KeyRevoked())
        else:
            await Log(database).confirm_replicated()
        return _select_key(await keys.list_keys(), str(found.key_id))

    revoked = run_with_database(settings, "keys", revoke)
    text = f"Key {revoked.name} of tenant {revoked.tenant} opens nothing any more."
    print_result(args.output, _key_output(revoked), escape(text))
    return OK


async def _append_key_event(
    database: Database, tenant: str, key_id: UUID, expected_version: int, body: KeyEvent
) -> None:
    recorded = make_event(body, Meta(actor=user_at_host()))
    append = Append(stream=key_id, category="key", tenant=tenant, expected=expected_version, events=(recorded,))
    # A conflict means that another process has revoked the same key.
    await Log(database).commit(Batch(appends=[append]))


def _select_key(keys: Sequence[KeyView], id_or_name: str) -> KeyView:
    """The key with an id or a name. Of several keys with one name, the active one."""
    found = [key for key in keys if id_or_name.lower() == str(key.key_id)] or [
        key for key in keys if key.name == id_or_name
    ]
    active = [key for key in found if key.is_active]
    if len(active or found) == 1:
        return (active or found)[0]
    raise NoSuchKey(
        f"there are {len(found)} keys called {id_or_name!r}; name one by its id."
        if found
        else f"no key {id_or_name!r}."
    )


def _key_output(key: KeyView) -> KeyOutput:
    return copy_fields(key, KeyOutput, id=key.key_id, scopes=sorted(key.scopes))


def _keys_table(keys: Sequence[KeyView]) -> Table:
    rows = []
    for key in keys:
        times = [at and f"{at:%Y-%m-%d %H:%M}" for at in (key.created_at, key.revoked_at)]
        rows.append((key.key_id, key.tenant, key.name, ", ".join(sorted(key.scopes)), *times))
    return plain_table("ID", "TENANT", "NAME", "SCOPES", "CREATED", "REVOKED", rows=rows)
