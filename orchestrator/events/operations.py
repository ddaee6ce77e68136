"""The events of what operators do to the service: the outbox, and anchors of the log. Pure."""

from typing import ClassVar

from eventstore.integrity.anchors import Anchor
from orchestrator.events.base import DomainEvent, Level


class OutboxPurged(DomainEvent, frozen=True, kw_only=True):
    """The waiting commands were thrown away. commands: how many, by queue."""

    code: ClassVar[str] = "outbox.purged"
    commands: dict[str, int]

    @property
    def level(self) -> Level:
        """Pending commands wait for a rebuild."""
        return "warning"

    def message(self) -> str:
        """The text of the event's log line."""
        return f"Outbox purged of {sum(self.commands.values())} command(s)."


class OutboxRebuilt(DomainEvent, frozen=True, kw_only=True):
    """Pending commands that no queue held were sent again. commands: how many, by queue."""

    code: ClassVar[str] = "outbox.rebuilt"
    commands: dict[str, int]

    def message(self) -> str:
        """The text of the event's log line."""
        return f"Outbox rebuilt: {sum(self.commands.values())} command(s) sent again."


OutboxEvent = OutboxPurged | OutboxRebuilt
"""Every event of the outbox's own stream."""


class AnchorSigned(DomainEvent, frozen=True, kw_only=True):
    """The heads of all partitions were signed."""

    code: ClassVar[str] = "anchor.signed"
    anchor: Anchor

    def message(self) -> str:
        """The text of the event's log line."""
        events = sum(end.position for end in self.anchor.ends)
        return f"Anchor of {events} event(s) signed by {self.anchor.public_key[:16]}…."
