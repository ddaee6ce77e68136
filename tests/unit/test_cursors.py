"""The cursors that clients carry."""

from datetime import UTC, datetime
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.cursors import JobsCursor, LogCursor, LogMark
from eventstore.ids import new_id

MOMENTS = st.datetimes(timezones=st.just(UTC))
QUARANTINE_MARK_CODES = st.builds(
    lambda position, chain: LogMark.of_event(position, chain if position else b""),
    st.integers(0, 2**63 - 1),
    st.binary(min_size=32, max_size=32),
)


@given(MOMENTS, st.uuids())
def test_a_jobs_cursor_comes_back_as_it_went(created_at: datetime, job_id: UUID) -> None:
    cursor = JobsCursor(created_at, job_id)
    assert JobsCursor.decode(cursor.encode()) == cursor


@given(st.uuids(), st.lists(QUARANTINE_MARK_CODES, max_size=256))
def test_a_log_cursor_comes_back_as_it_went(log_id: UUID, marks: list[LogMark]) -> None:
    cursor = LogCursor(log_id, dict(enumerate(marks)))
    found = LogCursor.decode(cursor.encode())
    assert (found.log_id, found.marks) == (cursor.log_id, cursor.marks)


@given(st.text(max_size=60) | st.binary(max_size=60).map(lambda raw: raw.hex()))
def test_any_other_text_is_a_value_error(text: str) -> None:
    """Whatever a client sends is a cursor of ours, to the letter, or rejected."""
    for kind in (JobsCursor, LogCursor):
        try:
            cursor = kind.decode(text)
        except ValueError:
            continue
        assert cursor.encode() == text


@pytest.mark.parametrize("cut", range(1, 12))
def test_a_log_cursor_that_was_cut_off_is_rejected(cut: int) -> None:
    """Not read as one of fewer partitions, unless whole marks are missing, which the number of partitions tells."""
    whole = LogCursor(new_id(), {0: LogMark.of_event(300, b"x" * 32)}).encode()
    with pytest.raises(ValueError):  # noqa: PT011  # any reason is as good
        LogCursor.decode(whole[:-cut])


def test_a_mark_holds_its_own_event_alone() -> None:
    mark = LogMark.of_event(7, bytes(range(32)))
    assert mark.matches_chain(bytes(range(32)))
    assert not mark.matches_chain(bytes(32))
    assert not mark.matches_chain(None)
    assert LogMark(0, b"").matches_chain(None)
