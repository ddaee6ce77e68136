"""The state of an API key, folded from its events, and the format of its text. Pure."""

import hashlib
import re
from datetime import datetime
from uuid import UUID

import msgspec
from msgspec.structs import replace

from orchestrator.events import DecodedEvent, KeyCreated, KeyRevoked, Scope

TENANT_NAME_PATTERN = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
"""The form of a tenant's name, which is a part of its object keys."""

_KEY_TEXT_PATTERN = re.compile(r"df_([0-9a-f]{32})_[A-Za-z0-9_-]{43}", re.ASCII)


class KeyView(msgspec.Struct, frozen=True, kw_only=True):
    """One key. digest: SHA-256 of its text, lower-case hex. The text itself is not stored."""

    key_id: UUID
    stream_version: int
    tenant: str
    name: str
    scopes: frozenset[Scope]
    digest: str
    created_at: datetime
    revoked_at: datetime | None = None

    @property
    def is_active(self) -> bool:
        """Whether it has not been revoked."""
        return self.revoked_at is None


def make_key_text(key_id: UUID, secret: str) -> str:
    """A key's text. secret: 256 random bits as 43 characters of base64url."""
    return f"df_{key_id.hex}_{secret}"


def parse_key_id(text: str) -> UUID | None:
    """The id in a key's text; None if the text has another form."""
    match = _KEY_TEXT_PATTERN.fullmatch(text)
    return None if match is None else UUID(hex=match[1])


def key_text_digest(text: str) -> str:
    """The digest that is stored instead of a key. The secret cannot be guessed, so one round of SHA-256 is enough."""
    return hashlib.sha256(text.encode()).hexdigest()


def evolve_key(key: KeyView | None, event: DecodedEvent) -> KeyView | None:
    """The key after one more event; None until it is created."""
    if key is None:
        return _key_of_created_event(event, event.body) if isinstance(event.body, KeyCreated) else None
    revoked_at = event.ts if isinstance(event.body, KeyRevoked) else key.revoked_at
    return replace(key, stream_version=event.version, revoked_at=revoked_at)


def _key_of_created_event(event: DecodedEvent, body: KeyCreated) -> KeyView:
    return KeyView(
        key_id=event.stream_id,
        stream_version=event.version,
        tenant=event.tenant,
        name=body.name,
        scopes=frozenset(body.scopes),
        digest=body.digest,
        created_at=event.ts,
    )
