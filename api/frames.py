"""The server-sent events of a job (WHATWG HTML, section 9.2). Pure.

Frames are `event:`, `data:`, `id:`, in this order, with LF. Only events of the log carry an id, so that a resume by
Last-Event-ID can skip nothing.
"""

from typing import Any

import msgspec

from api.responses import stamp
from eventstore import codec
from eventstore.events import ArtifactWritten, Recorded, StepError, StepFinish, StepStart
from projections.progress import Progress

HEARTBEAT = b":\n\n"


def retry(millis: int) -> bytes:
    """How long a client waits before it comes back."""
    return b"retry: %d\n\n" % millis


def of_event(event: Recorded, *, steps_apart: bool) -> bytes:
    """One event of the log. steps_apart: step.start and step.finish as `event: step` rather than `event: log`."""
    body = codec.body(event)
    line: dict[str, Any] = {
        "ts": stamp(event.ts),
        "level": "info" if body is None else body.level,
        "code": event.code,
    }
    match body:
        case ArtifactWritten():
            kind = "artifact"
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
            line |= {"code": body.error_code, "message": body.message(), "step": body.step_name}
            if body.item_index is not None:
                line["item_index"] = body.item_index
        case _:
            kind = "step" if steps_apart and isinstance(body, StepStart | StepFinish) else "log"
            line["message"] = event.code if body is None else body.message()
            if body is not None and body.step is not None:
                line["step"] = body.step
    # The log keeps the text as it came, and a line break in it would end the frame.
    line["payload"] = msgspec.Raw(msgspec.json.format(event.data, indent=-1).encode())
    return _frame(kind, msgspec.json.encode(line), event.version)


def of_progress(progress: Progress) -> bytes:
    """How far the job has come by now."""
    return _frame("progress", msgspec.json.encode(progress), None)


def _frame(kind: str, data: bytes, version: int | None) -> bytes:
    tail = b"\n" if version is None else b"id: %d\n\n" % version
    return b"event: %s\ndata: %s\n%s" % (kind.encode(), data, tail)
