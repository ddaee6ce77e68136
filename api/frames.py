"""The frames of server-sent events (WHATWG HTML, section 9.2).

A frame has the lines `event:`, `data:`, `id:`, in this order, ended with LF. Only events of the log have an id, so a
client that resumes by Last-Event-ID misses none.
"""

import random
from functools import lru_cache
from typing import Any

import msgspec

from api.event_lines import common_line_fields, event_data_fields, single_line_event_data
from api.responses import log_event_answer
from eventstore.events import RecordedEvent
from orchestrator import codec
from orchestrator.events import ArtifactWritten, StepError, StepFinish, StepStart
from projections.progress import Progress

HEARTBEAT_FRAME = b":\n\n"
RECONNECT_DELAY_MS = 2000
_SHARED_FRAMES = 1024
"""How many frames are kept: a new event is encoded once, and its subscribers, who are woken together, share it."""
_ARTIFACT_FIELDS = ("item_index", "artifact_id", "s3_key", "format", "width", "height", "seed")


def retry_line(delay_ms: int) -> bytes:
    """The client's reconnection delay, as a line at the beginning of a frame or the end of a stream.

    In a frame of its own, some clients would read it as an event with empty data.
    """
    return b"retry: %d\n" % delay_ms


def reconnect_later_content() -> bytes:
    """The whole content of a rejected stream. With jitter, so that clients don't reconnect all at once."""
    return retry_line(random.randint(RECONNECT_DELAY_MS, 4 * RECONNECT_DELAY_MS))  # noqa: S311  # no secret


@lru_cache(maxsize=_SHARED_FRAMES)
def job_event_frame(event: RecordedEvent, *, separate_steps: bool) -> bytes:
    """An event of a job. separate_steps: step.start and step.finish as `event: step` instead of `event: log`."""
    body = codec.decode_body_or_none(event)
    line = common_line_fields(event, body)
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
            line |= event_data_fields(event)
    line["payload"] = single_line_event_data(event)
    return _event_frame(kind, line, event.version)


def progress_frame(progress: Progress) -> bytes:
    """The progress of a job."""
    return b"event: progress\ndata: %s\n\n" % msgspec.json.encode(progress)


def log_event_frame(event: RecordedEvent, cursor: str) -> bytes:
    """An event of the whole log, as a message without a name."""
    return b"data: %s\nid: %s\n\n" % (_log_event_data(event), cursor.encode())


@lru_cache(maxsize=_SHARED_FRAMES)
def _log_event_data(event: RecordedEvent) -> bytes:
    return msgspec.json.encode(log_event_answer(event))


def cursor_frame(cursor: str) -> bytes:
    """The cursor of a subscriber of the whole log. It has data, since some clients ignore an `id:` without it."""
    return b"event: cursor\ndata: {}\nid: %s\n\n" % cursor.encode()


def _event_frame(event_name: str, payload: dict[str, Any], version: int) -> bytes:
    return b"event: %s\ndata: %s\nid: %d\n\n" % (event_name.encode(), msgspec.json.encode(payload), version)
