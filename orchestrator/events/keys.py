"""The events of an API key's stream. Pure."""

from typing import ClassVar, Literal

from orchestrator.events.base import DomainEvent

Scope = Literal["jobs", "audit", "admin"]


class KeyCreated(DomainEvent, frozen=True, kw_only=True):
    """An API key was made for the stream's tenant; the key itself is kept nowhere.

    digest: SHA-256 of the key, lower-case hex.
    """

    code: ClassVar[str] = "key.created"
    name: str
    scopes: list[Scope]
    digest: str

    def message(self) -> str:
        """The text of the event's log line."""
        return f"API key {self.name} created for {', '.join(self.scopes)}."


class KeyRevoked(DomainEvent, frozen=True, kw_only=True):
    """The key opens nothing any more."""

    code: ClassVar[str] = "key.revoked"

    def message(self) -> str:
        """The text of the event's log line."""
        return "API key revoked."


KeyEvent = KeyCreated | KeyRevoked
"""Every event of a key's stream."""
