"""What `dreamforge keys` does and answers."""

import argparse
import secrets
from collections.abc import Callable, Sequence
from datetime import datetime
from uuid import UUID

import msgspec
from rich.markup import escape
from rich.table import Table

from dreamforge import logs
from dreamforge.backends import ask_database
from dreamforge.console import INVALID, NOT_FOUND, OK, UNAVAILABLE, complain, print_answer
from dreamforge.embedded import EmbeddedError
from dreamforge.settings import Settings
from eventstore.database import Database
from eventstore.errors import EventStoreError
from eventstore.events import KeyCreated, KeyEvent, KeyRevoked, Meta, Scope
from eventstore.ids import new_id
from eventstore.log import Append, Batch, Log
from orchestrator.service import event
from projections.key_queries import Keys
from projections.keys import KeyView, digest, key_text


class Key(msgspec.Struct, frozen=True, kw_only=True):
    """A key as it is shown."""

    id: UUID
    tenant: str
    name: str
    scopes: list[Scope]
    created_at: datetime
    revoked_at: datetime | None


class NewKey(msgspec.Struct, frozen=True, kw_only=True):
    """A key as it is shown once. key: what its holder sends."""

    id: UUID
    tenant: str
    name: str
    scopes: list[Scope]
    key: str


class NoSuchKey(Exception):
    """There is no such key, or more than one; the message says which."""


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Run one command; returns the exit code."""
    logs.configure("warning", settings.log_format)
    commands: dict[str, Callable[[argparse.Namespace, Settings], int]] = {
        "create": _create,
        "list": _list,
        "revoke": _revoke,
    }
    try:
        return commands[args.action](args, settings)
    except NoSuchKey as error:
        return complain(NOT_FOUND, str(error))
    except (EmbeddedError, EventStoreError) as error:
        return complain(UNAVAILABLE, str(error))


def _create(args: argparse.Namespace, settings: Settings) -> int:
    key_id = new_id()
    text = key_text(key_id, secrets.token_urlsafe(32))
    body = KeyCreated(name=args.name, scopes=args.scopes, digest=digest(text))

    async def create(database: Database, actor: str) -> bool:
        known = await Keys(Log(database)).all()
        if any((key.tenant, key.name, key.active) == (args.tenant, args.name, True) for key in known):
            return False
        await _append(database, actor, args.tenant, key_id, 0, body)
        return True

    if not ask_database(settings, "keys", create):
        return complain(
            INVALID, f"tenant {args.tenant} has a key called {args.name!r}; revoke it, or choose another name."
        )
    made = NewKey(id=key_id, tenant=args.tenant, name=args.name, scopes=args.scopes, key=text)
    print_answer(args.output, made, f"{escape(text)}\n\nThis is shown once. Send it as `Authorization: Bearer …`.")
    return OK


def _list(args: argparse.Namespace, settings: Settings) -> int:
    async def ask(database: Database, _actor: str) -> list[KeyView]:
        return await Keys(Log(database)).all()

    found = ask_database(settings, "keys", ask)
    shown = [key for key in found if args.tenant in {None, key.tenant} and (args.all or key.active)]
    print_answer(args.output, [_shown(key) for key in shown], _table(shown))
    return OK


def _revoke(args: argparse.Namespace, settings: Settings) -> int:
    async def revoke(database: Database, actor: str) -> KeyView:
        keys = Keys(Log(database))
        found = _chosen(await keys.all(), args.key)
        if found.active:
            await _append(database, actor, found.tenant, found.key_id, found.stream_version, KeyRevoked())
        else:
            await Log(database).confirm_replicated()
        return _chosen(await keys.all(), str(found.key_id))

    revoked = ask_database(settings, "keys", revoke)
    text = f"Key {revoked.name} of tenant {revoked.tenant} opens nothing any more."
    print_answer(args.output, _shown(revoked), escape(text))
    return OK


async def _append(database: Database, actor: str, tenant: str, key_id: UUID, version: int, body: KeyEvent) -> None:
    noted = event(body, Meta(actor=actor))
    append = Append(stream=key_id, category="key", tenant=tenant, expected=version, events=(noted,))
    # A conflict means that somebody else has just revoked the same key.
    await Log(database).commit(Batch(appends=[append]))


def _chosen(keys: Sequence[KeyView], text: str) -> KeyView:
    """The key of an id, or of a name; of several by one name the active one."""
    found = [key for key in keys if text.lower() == str(key.key_id)] or [key for key in keys if key.name == text]
    active = [key for key in found if key.active]
    if len(active or found) == 1:
        return (active or found)[0]
    raise NoSuchKey(
        f"there are {len(found)} keys called {text!r}; name one by its id." if found else f"no key {text!r}."
    )


def _shown(key: KeyView) -> Key:
    return Key(
        id=key.key_id,
        tenant=key.tenant,
        name=key.name,
        scopes=sorted(key.scopes),
        created_at=key.created_at,
        revoked_at=key.revoked_at,
    )


def _table(keys: Sequence[KeyView]) -> Table:
    table = Table("ID", "TENANT", "NAME", "SCOPES", "CREATED", "REVOKED", box=None)
    for key in keys:
        times = [f"{at:%Y-%m-%d %H:%M}" if at else "" for at in (key.created_at, key.revoked_at)]
        table.add_row(str(key.key_id), key.tenant, escape(key.name), ", ".join(sorted(key.scopes)), *times)
    return table
