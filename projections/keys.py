"""An API key as operators see it, and how its text is made and read. Pure."""

import hashlib
import re
from collections.abc import Iterable
from datetime import datetime
from uuid import UUID

import msgspec
from msgspec.structs import replace

from orchestrator.events.base import DecodedEvent
from orchestrator.events.keys import KeyCreated, KeyRevoked, Scope

TENANT = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
"""What a tenant may be called: its name is a part of its objects' keys."""

_TEXT = re.compile(r"df_([0-9a-f]{32})_[A-Za-z0-9_-]{43}", re.ASCII)


class KeyView(msgspec.Struct, frozen=True, kw_only=True):
    """One key. digest: SHA-256 of its text, lower-case hex; the text itself is kept nowhere."""

    key_id: UUID
    stream_version: int
    tenant: str
    name: str
    scopes: frozenset[Scope]
    digest: str
    created_at: datetime
    revoked_at: datetime | None = None

    @property
    def active(self) -> bool:
        """Does it open anything?"""
        return self.revoked_at is None


def key_text(key_id: UUID, secret: str) -> str:
    """A key as its holder gets it. secret: 256 bits of randomness as 43 characters of base64url."""
    return f"df_{key_id.hex}_{secret}"


def named_id(text: str) -> UUID | None:
    """The id in a key's text; None for what is no key."""
    found = _TEXT.fullmatch(text)
    return None if found is None else UUID(hex=found[1])


def digest(text: str) -> str:
    """What is kept of a key. Its secret can't be guessed, so that one round of SHA-256 is enough."""
    return hashlib.sha256(text.encode()).hexdigest()


def view(events: Iterable[DecodedEvent]) -> KeyView | None:
    """The key after a whole history; None for one that is not a key's."""
    seen: KeyView | None = None
    for event in events:
        seen = evolve(seen, event)
    return seen


def evolve(seen: KeyView | None, event: DecodedEvent) -> KeyView | None:
    """The key after one more event; None until it is created."""
    if seen is None:
        return _created(event, event.body) if isinstance(event.body, KeyCreated) else None
    revoked_at = event.ts if isinstance(event.body, KeyRevoked) else seen.revoked_at
    return replace(seen, stream_version=event.version, revoked_at=revoked_at)


def _created(event: DecodedEvent, body: KeyCreated) -> KeyView:
    return KeyView(
        key_id=event.stream_id,
        stream_version=event.version,
        tenant=event.tenant,
        name=body.name,
        scopes=frozenset(body.scopes),
        digest=body.digest,
        created_at=event.ts,
    )
