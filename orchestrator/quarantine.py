"""Is a job set aside? Its history tells by its marks alone, whatever else in it can't be read. Pure."""

from collections.abc import Iterable
from typing import cast

from eventstore import codec
from eventstore.events import JobQuarantined, JobReleased, Stored

_MARKS = {JobQuarantined.code, JobReleased.code}


def mark(history: Iterable[Stored]) -> JobQuarantined | JobReleased | None:
    """The last word on whether a job is set aside; None if it never was."""
    marks = [event for event in history if event.code in _MARKS]
    return cast("JobQuarantined | JobReleased", codec.body(marks[-1])) if marks else None


def is_set_aside(history: Iterable[Stored]) -> bool:
    """Is nothing to be decided on the job? So it is until an operator lets it go on."""
    last = mark(history)
    return last is not None and not (isinstance(last, JobReleased) and last.resume)
