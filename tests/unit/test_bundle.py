"""A bundle proves itself: whole ones verify, and one flipped bit names its line."""

import io
import random
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from eventstore.integrity.bundle import BundleHeader, BundleReport, BundleWriter, verify_bundle
from eventstore.integrity.verifier import AuditEvent
from orchestrator import codec
from tests import memory_log
from tests.kit import NOON

ROWS = memory_log.read(memory_log.ordered(memory_log.log(random.Random(5), 12, streams=3)))
JOB = ROWS[0].stream_id


def written(rows: Sequence[AuditEvent], **changes: object) -> list[bytes]:
    """The lines of a bundle of everything, unless changed."""
    given: dict[str, object] = {
        "log": memory_log.LOG,
        "exported_at": NOON,
        "stream": None,
        "since": NOON,
        "private": False,
    }
    writer = BundleWriter(BundleHeader(**given | changes))  # type: ignore[arg-type]  # of several types, each in its place
    return [writer.header_line(), *map(writer.event_line, rows), writer.end_line()]


def told(report: BundleReport) -> list[tuple[int, str]]:
    """The lines and problems of a report."""
    return [(flaw.line, flaw.problem) for flaw in report.flaws]


@pytest.mark.parametrize("private", [True, False])
def test_a_whole_bundle_verifies(private: bool) -> None:  # noqa: FBT001  # a parameter of the test
    """With and without the personal text; a bundle without it does not hold it anywhere."""
    lines = written(ROWS, private=private)
    report = verify_bundle(lines, vocabulary=codec.COLUMN_VOCABULARY)
    assert told(report) == []
    assert report.events == len(ROWS)
    assert report.header is not None
    assert report.header.log == memory_log.LOG
    assert (b"castle" in b"".join(lines)) is private


def test_a_part_of_a_log_verifies() -> None:
    """One that begins in the midst of every partition and stream."""
    assert told(verify_bundle(written([row for row in ROWS if row.position > 2]))) == []


def test_one_job_verifies() -> None:
    rows = [row for row in ROWS if row.stream_id == JOB]
    assert told(verify_bundle(written(rows, stream=JOB, since=None))) == []


def test_an_empty_bundle_verifies() -> None:
    assert told(verify_bundle(written([]))) == []


def test_every_flipped_bit_names_its_line() -> None:
    """Given any one bit flipped in a bundle, then the first flaw names the line, and no other line is blamed.

    Where a newline comes or goes, all lines that follow have another number than their seals tell.
    """
    lines = written(ROWS[:4])
    text = b"".join(lines)
    number = 1
    for index, byte in enumerate(text):
        for bit in range(8):
            forged = text[:index] + bytes([byte ^ 1 << bit]) + text[index + 1 :]
            found = verify_bundle(io.BytesIO(forged))
            assert found.flaws, (index, bit)
            assert found.flaws[0].line == number, (index, bit, found.flaws)
            if forged.count(b"\n") == text.count(b"\n"):
                assert {flaw.line for flaw in found.flaws} == {number}, (index, bit, found.flaws)
        number += byte == ord("\n")


def test_a_removed_line_is_missed() -> None:
    """Whichever it is; the numbers in the seals tell that it is not there."""
    lines = written(ROWS)
    for gone in range(len(lines)):
        assert verify_bundle(lines[:gone] + lines[gone + 1 :]).flaws[0].line == gone + 1


def test_a_bundle_that_was_cut_off_is_told() -> None:
    """At a line's end, and within a line."""
    lines = written(ROWS)
    assert told(verify_bundle(lines[:5])) == [(6, "is missing: the bundle has no end, so it was cut off")]
    assert told(verify_bundle([*lines[:5], lines[5][:40]]))[0] == (6, "does not end as a line does: it was cut off")


def test_a_forger_who_seals_anew_is_told_by_the_chains() -> None:
    """Given a changed event with hashes and seals computed anew, then the links of the next event do not fit."""
    index = next(n for n, row in enumerate(ROWS) if ROWS[n + 1].partition == row.partition)
    before = [row for row in ROWS if row.partition != ROWS[index].partition or row.position < ROWS[index].position]
    forged = memory_log.chained(replace(ROWS[index], data='{"attempt":99}'), before)
    line, problem = told(verify_bundle(written([*ROWS[:index], forged, *ROWS[index + 1 :]])))[0]
    assert (line, problem.split("_")[0]) == (index + 3, "previous")


def test_a_changed_event_under_a_new_seal_names_its_field() -> None:
    rows = [replace(ROWS[0], code="job.finish" if ROWS[0].code != "job.finish" else "error"), *ROWS[1:]]
    line, problem = told(verify_bundle(written(rows), vocabulary=codec.COLUMN_VOCABULARY))[0]
    assert (line, problem.split(":")[0]) == (2, "code")


@pytest.mark.parametrize("text", [b"", b"{}\n", b"[]\n", b"x\n", b"\xff\n", b'{"seal":"","header":{},"end":{}}\n'])
def test_what_is_no_bundle_is_told(text: bytes) -> None:
    report = verify_bundle(io.BytesIO(text))
    assert report.header is None
    assert report.flaws[0].line == 1


def test_another_format_is_rejected() -> None:
    """A later release's bundle is no damaged one: the message says what it is."""
    writer = BundleWriter(BundleHeader(log=memory_log.LOG, exported_at=NOON, stream=None, since=None, private=False))
    writer._header = msgspec.structs.replace(writer._header, format="dreamforge-bundle/9")
    assert "dreamforge-bundle/9" in told(verify_bundle([writer.header_line()]))[0][1]


@pytest.mark.parametrize(
    "change", [{"schema_version": 2**40}, {"version": -(2**40)}, {"ts": NOON.replace(tzinfo=None)}]
)
def test_what_no_log_can_hold_is_told(change: dict[str, Any]) -> None:
    """Given a well-sealed line with a value beyond all bounds, then the line is named."""
    found = told(verify_bundle(written([replace(ROWS[0], **change)])))
    assert (found[0][0], "no log holds" in found[0][1]) == (2, True)
