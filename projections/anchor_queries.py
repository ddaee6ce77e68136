"""Reads of the signed anchors that stand in the log."""

from eventstore import codec
from eventstore.events import Anchor, AnchorSigned
from eventstore.ids import derived_id
from eventstore.log import Log

STREAM = derived_id(b"anchors")
"""The stream of all anchors."""


async def newest(log: Log, limit: int) -> list[Anchor]:
    """The last anchors that this release can read, newest first. Raises `DatabaseUnavailable`."""
    bodies = map(codec.body_if_readable, await log.latest(STREAM, limit=limit))
    return [body.anchor for body in bodies if isinstance(body, AnchorSigned)]
