"""Reads of the signed anchors in the log."""

from eventstore.ids import derive_id
from eventstore.integrity.anchors import Anchor
from eventstore.log import Log
from orchestrator import codec
from orchestrator.events import AnchorSigned

ANCHOR_STREAM_ID = derive_id(b"anchors")
"""The stream of all anchors."""


async def newest_anchors(log: Log, limit: int) -> list[Anchor]:
    """The newest anchors that this release can read, newest first. Raises `DatabaseUnavailable`."""
    bodies = map(codec.decode_body_or_none, await log.latest_events(ANCHOR_STREAM_ID, limit=limit))
    return [body.anchor for body in bodies if isinstance(body, AnchorSigned)]
