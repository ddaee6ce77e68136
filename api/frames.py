"""The frames of server-sent events (WHATWG HTML, section 9.2).

A frame has the lines `event:`, `data:`, `id:`, in this order, ended with LF. Only events of the log have an id, so a
client that resumes by Last-Event-ID misses none.
"""

import random
from typing import Any

import msgspec

from api.log_lines import compact_data, event_fields, head
from api.responses import log_event
from eventstore.events import RecordedEvent
from orchestrator import codec
from orchestrator.events import ArtifactWritten, StepError, StepFinish, StepStart
from projections.progress import Progress

HEARTBEAT = b":\n\n"
RETRY_MS = 2000
_ARTIFACT_FIELDS = ("item_index", "artifact_id", "s3_key", "format", "width", "height", "seed")


def retry(millis: int) -> bytes:
    """The client's reconnection delay, as a line at the beginning of a frame or the end of a stream.

    In a frame of its own, some clients would read it as an event with empty data.
    """
    return b"retry: %d\n" % millis


def reconnect_later() -> bytes:
    """The whole content of a rejected stream. With jitter, so that clients don't reconnect all at once."""
    return retry(random.randint(RETRY_MS, 4 * RETRY_MS))  # noqa: S311  # no secret


def of_event(event: RecordedEvent, *, separate_steps: bool) -> bytes:
    """An event of a job. separate_steps: step.start and step.finish as `event: step` instead of `event: log`."""
    body = codec.decode_body_or_none(event)
    line = head(event, body)
    match body:
        case ArtifactWritten():
            kind = "artifact"
            del line["message"]
            line |= {"step": body.step_name} | {name: getattr(body, name) for name in _ARTIFACT_FIELDS}
        case StepError():
            kind = "error"
            line |= {"code": body.error_code, "step": body.step_name}
            if body.item_index is not None:
                line["item_index"] = body.item_index
        case _:
            kind = "step" if separate_steps and isinstance(body, StepStart | StepFinish) else "log"
            line |= event_fields(event)
    line["payload"] = compact_data(event)
    return _frame(kind, line, event.version)


def of_progress(progress: Progress) -> bytes:
    """The progress of a job."""
    return b"event: progress\ndata: %s\n\n" % msgspec.json.encode(progress)


def of_log_event(event: RecordedEvent, cursor: str) -> bytes:
    """An event of the whole log, as a message without a name."""
    return b"data: %s\nid: %s\n\n" % (msgspec.json.encode(log_event(event)), cursor.encode())


def of_cursor(cursor: str) -> bytes:
    """The cursor of a subscriber of the whole log. It has data, since some clients ignore an `id:` without it."""
    return b"event: cursor\ndata: {}\nid: %s\n\n" % cursor.encode()


def _frame(kind: str, line: dict[str, Any], version: int) -> bytes:
    return b"event: %s\ndata: %s\nid: %d\n\n" % (kind.encode(), msgspec.json.encode(line), version)
