"""Is a job set aside? Its history tells by its marks alone, whatever else in it can't be read. Pure."""

from collections.abc import Sequence

from eventstore.events import EventRow
from orchestrator import codec
from orchestrator.events import JobQuarantined, JobReleased

QUARANTINE_MARK_CODES = frozenset({JobQuarantined.code, JobReleased.code})


def last_quarantine_mark(history: Sequence[EventRow]) -> EventRow | None:
    """The last word on whether a job is set aside; None if it never was."""
    return next((event for event in reversed(history) if event.code in QUARANTINE_MARK_CODES), None)


def mark_resumes_job(event: EventRow) -> bool:
    """Does a mark let the job go on? One that can't be read itself does not."""
    body = codec.decode_body_or_none(event)
    return isinstance(body, JobReleased) and body.resume


def is_quarantined(history: Sequence[EventRow]) -> bool:
    """Is nothing to be decided on the job? So it is until an operator lets it go on."""
    last_mark = last_quarantine_mark(history)
    return last_mark is not None and not mark_resumes_job(last_mark)
