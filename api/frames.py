"""The server-sent events (WHATWG HTML, section 9.2).

Frames are `event:`, `data:`, `id:`, in this order, with LF. Only events of the log carry an id, so that a resume by
Last-Event-ID can skip nothing.
"""

import random
from typing import Any

import msgspec

from api import lines
from api.responses import log_event
from eventstore.events import RecordedEvent
from orchestrator import codec
from orchestrator.events.steps import ArtifactWritten, StepError, StepFinish, StepStart
from projections.progress import Progress

HEARTBEAT = b":\n\n"
RETRY_MS = 2000


def retry(millis: int) -> bytes:
    """How long a client waits before it comes back: a line that begins a block, or ends a stream.

    As a block of its own it would be an event with empty data to some clients.
    """
    return b"retry: %d\n" % millis


def come_back() -> bytes:
    """The whole of a stream that is refused for now. Jitter, so that clients don't all come back at once."""
    return retry(random.randint(RETRY_MS, 4 * RETRY_MS))  # noqa: S311  # no secret


def of_event(event: RecordedEvent, *, steps_apart: bool) -> bytes:
    """One event of a job. steps_apart: step.start and step.finish as `event: step` rather than `event: log`."""
    body = codec.body_if_readable(event)
    line = lines.head(event, body)
    match body:
        case ArtifactWritten():
            kind = "artifact"
            del line["message"]
            line |= {
                "step": body.step_name,
                "item_index": body.item_index,
                "artifact_id": body.artifact_id,
                "s3_key": body.s3_key,
                "format": body.format,
                "width": body.width,
                "height": body.height,
                "seed": body.seed,
            }
        case StepError():
            kind = "error"
            line |= {"code": body.error_code, "step": body.step_name}
            if body.item_index is not None:
                line["item_index"] = body.item_index
        case _:
            kind = "step" if steps_apart and isinstance(body, StepStart | StepFinish) else "log"
            line |= lines.data(event)
    line["payload"] = lines.payload(event)  # on one line: a line break would end the frame
    return _frame(kind, line, event.version)


def of_progress(progress: Progress) -> bytes:
    """How far the job has come by now."""
    return b"event: progress\ndata: %s\n\n" % msgspec.json.encode(progress)


def of_log_event(event: RecordedEvent, cursor: str) -> bytes:
    """One event of the whole log, as a message without a name."""
    return b"data: %s\nid: %s\n\n" % (msgspec.json.encode(log_event(event)), cursor.encode())


def cursor(cursor: str) -> bytes:
    """Where a subscriber of the whole log stands; some clients pass over an `id:` without data."""
    return b"event: cursor\ndata: {}\nid: %s\n\n" % cursor.encode()


def _frame(kind: str, line: dict[str, Any], version: int) -> bytes:
    return b"event: %s\ndata: %s\nid: %d\n\n" % (kind.encode(), msgspec.json.encode(line), version)
