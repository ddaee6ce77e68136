"""What `dreamforge top` makes of two readings of the database."""

from datetime import timedelta
from typing import Any

import pytest

from dreamforge.operations import snapshot
from dreamforge.operations.snapshot import (
    WINDOW_LENGTH,
    DatabaseState,
    RunningStep,
    WindowEvent,
    make_snapshot,
    select_window_events,
    start_positions,
)
from projections.subscription_status import SubscriptionStatus
from tests.kit import NOON


def happened(position: int, code: str = "step.start", *, second: float = 0, **more: Any) -> WindowEvent:
    return WindowEvent(
        partition=more.pop("partition", 0),
        position=position,
        recorded_at=NOON + timedelta(seconds=second),
        code=code,
        **more,
    )


def reading(second: float = 0, *events: WindowEvent, **more: Any) -> DatabaseState:
    """A reading so long after noon, of a log of two partitions, quiet but for its events."""
    heads = {
        partition: max((e.position for e in events if e.partition == partition), default=0) for partition in (0, 1)
    }
    at = NOON + timedelta(seconds=second)
    given: dict[str, Any] = {"at": at, "heads": heads, "since": at - WINDOW_LENGTH, "events": events}
    given |= {"open_jobs": {}, "queues": [], "running": [], "subscription_statuses": []}
    return DatabaseState(**given | more)


def status(projection: str, partition: int, lag: int, lag_s: float | None) -> SubscriptionStatus:
    return SubscriptionStatus(
        projection=projection, partition=partition, position=5, head=5 + lag, lag_s=lag_s, moved_at=NOON
    )


def test_rates_are_of_what_came_since_the_reading_before() -> None:
    """Given one event before and five in the two seconds since, then now tells of the five, the mean of all six."""
    old = happened(1, "job.created")
    new = [happened(n, "artifact.written", second=1) for n in (2, 3, 4, 5)]
    new.append(happened(1, "job.finish", second=1, partition=1))
    rates = make_snapshot(reading(0, old), reading(2, old, *new)).rates
    assert {name: rate.now for name, rate in rates.items()} == {
        "events": 2.5,
        "jobs_created": 0.0,
        "jobs_ended": 0.5,
        "images": 2.0,
    }
    assert {name: rate.count for name, rate in rates.items()} == {
        "events": 6,
        "jobs_created": 1,
        "jobs_ended": 1,
        "images": 4,
    }
    assert rates["events"].mean == 0.1


def test_the_first_reading_knows_no_rate_of_now() -> None:
    rates = make_snapshot(None, reading(0, happened(1))).rates
    assert {rate.now for rate in rates.values()} == {None}


def test_a_log_that_was_set_back_is_looked_at_anew() -> None:
    """Given a head that is lower than before, then nothing is subtracted from it."""
    before = reading(0, happened(9))
    after = reading(1, happened(4))
    assert snapshot.previous_if_same_log(before, after.heads) is None
    assert make_snapshot(before, after).rates["events"].now is None


def test_where_more_came_than_is_read_only_positions_tell_of_now() -> None:
    before = reading(0)
    after = reading(10, happened(900, "artifact.written", second=9), since=NOON + timedelta(seconds=8))
    rates = make_snapshot(before, after).rates
    assert (rates["events"].now, rates["images"].now, rates["images"].mean) == (90.0, None, 0.5)


def test_ends_are_counted_by_how_they_came() -> None:
    ends = [("step.finish", "succeeded"), ("step.finish", "failed"), ("step.finish", "cancelled"), ("step.retry", None)]
    events = [happened(n, code, status=status) for n, (code, status) in enumerate(ends, 1)]
    events += [
        happened(n, "job.finish", status=status) for n, status in ((5, "failed"), (6, "failed"), (7, "succeeded"))
    ]
    found = make_snapshot(None, reading(1, *events, open_jobs={"queued": 3}))
    assert (found.steps.succeeded, found.steps.retried, found.steps.failed) == (1, 1, 1)
    assert (found.jobs.queued, found.jobs.running, found.jobs.failed) == (3, 0, 2)


def test_runners_are_known_by_what_they_wrote_or_work_on() -> None:
    """Given one that wrote and one that only holds a step for long, then both are there, the busy one first."""
    events = [happened(1, "artifact.written", second=1, runner="a"), happened(2, "step.finish", second=2, runner="a")]
    began = NOON - timedelta(seconds=300)
    found = make_snapshot(
        None, reading(4, *events, happened(3, "job.created"), running=[RunningStep(runner="b", heard_at=began)])
    )
    assert [(one.runner, one.running, one.images, one.heard_s) for one in found.runners] == [
        ("b", 1, 0, 304.0),
        ("a", 0, 1, 2.0),
    ]


def test_partitions_are_summed_up_and_the_worst_comes_first() -> None:
    subscription_statuses = [
        status("idle", 0, 0, None),
        status("busy", 0, 3, 0.5),
        status("busy", 1, 4, 2.5),
        status("stuck", 0, 1, 90.0),
        status("stuck", 1, 0, None),
    ]
    lags = make_snapshot(None, reading(0, subscription_statuses=subscription_statuses)).projections
    assert [(one.projection, one.lag, one.lag_s) for one in lags] == [
        ("stuck", 1, 90.0),
        ("busy", 7, 2.5),
        ("idle", 0, None),
    ]


def test_a_reading_begins_where_the_last_one_ended_and_reads_no_more_than_it_holds() -> None:
    heads = {0: 10, 1: 1_000_000}
    assert start_positions(heads, None) == {0: 0, 1: 997_500}
    assert start_positions(heads, reading(0, heads={0: 8, 1: 999_999})) == {0: 8, 1: 999_999}


def test_the_window_keeps_what_was_read_before_and_lets_go_of_what_is_old() -> None:
    before = reading(0, happened(1, second=-50), happened(2, second=0))
    at = NOON + timedelta(seconds=20)
    since, events = select_window_events(at, before, {0: 2, 1: 0}, [happened(3, second=19)])
    assert since == at - WINDOW_LENGTH
    assert [one.position for one in events] == [2, 3]


@pytest.mark.parametrize(("start", "seen", "since"), [(7, 7, -59), (7, 0, 0.5)], ids=["all-of-it", "older-left-out"])
def test_the_window_begins_where_all_is_known(start: int, seen: int, since: float) -> None:
    """Given a partition of which older events were left out, then the other's of that time don't count either."""
    before = reading(0, heads={0: seen, 1: 0})
    fresh = [happened(start + 1, second=0.5), happened(start + 2, second=1), happened(1, partition=1)]
    found, events = select_window_events(NOON + timedelta(seconds=1), before, {0: start, 1: 0}, fresh)
    assert found == NOON + timedelta(seconds=since)
    assert len(events) == (3 if start == seen else 2)


def test_the_window_holds_no_more_than_so_many_events(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "MAX_WINDOW_EVENTS", 3)
    fresh = [happened(n, second=n) for n in range(1, 6)]
    since, events = select_window_events(NOON + timedelta(seconds=6), None, {0: 0, 1: 0}, fresh)
    assert since == NOON + timedelta(seconds=3)
    assert [one.position for one in events] == [3, 4, 5]
