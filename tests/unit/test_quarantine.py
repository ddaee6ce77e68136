"""Whether a job is set aside is told by its marks alone."""

import pytest

from eventstore.events import EventRow
from orchestrator.events import JobQuarantined, JobReleased
from orchestrator.quarantine import is_quarantined
from tests.kit import NOBODY, NOON

MARK = JobQuarantined.code, '{"reader":"orchestrator","at_version":1,"reason":"broken"}'
GOES_ON = JobReleased.code, '{"resume":true}'
STAYS_FAILED = JobReleased.code, '{"resume":false}'
NONSENSE = "{}"


def history(*events: tuple[str, str]) -> list[EventRow]:
    """Events of one job, by code and data."""
    given = [("job.created", NONSENSE), *events]
    return [
        EventRow(
            stream_id=NOBODY,
            tenant="default",
            version=version,
            code=code,
            schema_version=1,
            ts=NOON,
            data=data,
            meta="{}",
            private=None,
        )
        for version, (code, data) in enumerate(given, 1)
    ]


@pytest.mark.parametrize(
    ("marks", "aside"),
    [
        ([], False),
        ([MARK], True),
        ([MARK, GOES_ON], False),
        ([MARK, STAYS_FAILED], True),
        ([MARK, GOES_ON, MARK], True),
        ([(JobQuarantined.code, NONSENSE)], True),
        ([MARK, (JobReleased.code, NONSENSE)], True),
    ],
)
def test_the_last_mark_counts_even_if_it_cannot_be_read(marks: list[tuple[str, str]], aside: bool) -> None:  # noqa: FBT001  # a row of the table
    assert is_quarantined(history(*marks)) is aside
