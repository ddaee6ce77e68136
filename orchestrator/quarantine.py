"""Is a job set aside? Its history tells by its marks alone, whatever else in it can't be read. Pure."""

from collections.abc import Sequence

from eventstore.events import EventRow
from orchestrator import codec
from orchestrator.events import JobQuarantined, JobReleased

MARKS = frozenset({JobQuarantined.code, JobReleased.code})


def mark(history: Sequence[EventRow]) -> EventRow | None:
    """The last word on whether a job is set aside; None if it never was."""
    return next((event for event in reversed(history) if event.code in MARKS), None)


def resumes(event: EventRow) -> bool:
    """Does a mark let the job go on? One that can't be read itself does not."""
    body = codec.body_if_readable(event)
    return isinstance(body, JobReleased) and body.resume


def is_set_aside(history: Sequence[EventRow]) -> bool:
    """Is nothing to be decided on the job? So it is until an operator lets it go on."""
    last = mark(history)
    return last is not None and not resumes(last)
