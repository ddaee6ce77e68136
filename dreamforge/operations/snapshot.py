"""What `dreamforge top` shows, computed from two successive states of the database. Pure: no I/O, no clock."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from itertools import groupby

import msgspec

from projections.subscription_status import SubscriptionStatus

WINDOW = timedelta(seconds=60)
MOST_EVENTS = 5000
"""The most events of a window: with more events, the window is shorter."""


class WindowEvent(msgspec.Struct, frozen=True, kw_only=True):
    """An event in the window. status: of a step or job that ended. runner: None if another role appended it."""

    partition: int
    position: int
    recorded_at: datetime
    code: str
    status: str | None = None
    runner: str | None = None


class Queue(msgspec.Struct, frozen=True, kw_only=True):
    """A queue. hidden: claimed or deferred commands. oldest_s: how long the oldest visible command has waited."""

    queue: str
    visible: int
    hidden: int
    oldest_s: float | None


class RunningStep(msgspec.Struct, frozen=True, kw_only=True):
    """A step that a runner is running. heard_at: time of the runner's newest event for the job."""

    runner: str
    heard_at: datetime


class DatabaseState(msgspec.Struct, frozen=True, kw_only=True):
    """The state of the database at one time, by its own clock.

    heads: by partition. events: all since `since`, oldest first. open_jobs: numbers by status.
    """

    at: datetime
    heads: Mapping[int, int]
    since: datetime
    events: Sequence[WindowEvent]
    open_jobs: Mapping[str, int]
    queues: Sequence[Queue]
    running: Sequence[RunningStep]
    subscription_statuses: Sequence[SubscriptionStatus]


class Rate(msgspec.Struct, frozen=True, kw_only=True):
    """The rate of an event code: per second since the previous state (now), and in the window (mean, count).

    now: None if unknown: for the first state, and if more events were appended than were read.
    """

    now: float | None
    mean: float
    count: int


class Steps(msgspec.Struct, frozen=True, kw_only=True):
    """How attempts at steps ended in the window. retried: includes hand-backs."""

    succeeded: int
    retried: int
    failed: int


class JobCounts(msgspec.Struct, frozen=True, kw_only=True):
    """Open jobs according to the read model, and jobs that failed in the window."""

    queued: int
    running: int
    failed: int


class Runner(msgspec.Struct, frozen=True, kw_only=True):
    """A runner that runs steps or appended events in the window. running: steps. heard_s: age of its newest event."""

    runner: str
    running: int
    images: int
    heard_s: float


class Lag(msgspec.Struct, frozen=True, kw_only=True):
    """A subscription's lag over all partitions. lag: in events. lag_s: the longest, in seconds; None without lag."""

    projection: str
    lag: int
    lag_s: float | None


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """What is shown at one time. window_s: length of the window."""

    at: datetime
    window_s: float
    rates: dict[str, Rate]
    steps: Steps
    jobs: JobCounts
    queues: list[Queue]
    runners: list[Runner]
    projections: list[Lag]


_RATED = {"jobs_created": "job.created", "jobs_ended": "job.finish", "images": "artifact.written"}
"""The events whose rates are shown, by name."""


def start_positions(heads: Mapping[int, int], before: DatabaseState | None) -> dict[int, int]:
    """The position of each partition after which to read: new events, limited to `MOST_EVENTS` in all."""
    most = max(1, MOST_EVENTS // len(heads))
    previous_heads = {} if before is None else before.heads
    return {partition: max(previous_heads.get(partition, 0), head - most) for partition, head in heads.items()}


def window_events(
    at: datetime, before: DatabaseState | None, starts: Mapping[int, int], new_events: Iterable[WindowEvent]
) -> tuple[datetime, list[WindowEvent]]:
    """The start of the window, and all events since then, oldest first.

    starts: the positions after which the new events were read (see `start_positions`).
    """
    since = at - WINDOW
    events = list(new_events)
    previous_heads: Mapping[int, int] = {}
    if before is not None:
        since, previous_heads = max(since, before.since), before.heads
    # If older events were not read, the window begins at the first event that was read.
    first_times = {
        event.partition: event.recorded_at for event in events if event.position == starts[event.partition] + 1
    }
    cut_times = [
        first for partition, first in first_times.items() if starts[partition] > previous_heads.get(partition, 0)
    ]
    if before is not None:
        events += before.events
    events.sort(key=lambda event: (event.recorded_at, event.partition, event.position))
    if len(events) > MOST_EVENTS:
        events = events[-MOST_EVENTS:]
        cut_times.append(events[0].recorded_at)
    since = max([since, *cut_times])
    return since, [event for event in events if event.recorded_at >= since]


def previous_if_same_log(before: DatabaseState | None, heads: Mapping[int, int]) -> DatabaseState | None:
    """The previous state; None if a head has decreased, because it is then of another log."""
    if before is None or any(heads.get(partition, 0) < head for partition, head in before.heads.items()):
        return None
    return before


def make_snapshot(before: DatabaseState | None, after: DatabaseState) -> Snapshot:
    """The snapshot from two states. Without a previous state, the rates are unknown."""
    return Snapshot(
        at=after.at,
        window_s=_window_s(after),
        rates=_rates(previous_if_same_log(before, after.heads), after),
        steps=Steps(
            succeeded=_count(after, "step.finish", "succeeded"),
            retried=_count(after, "step.retry"),
            failed=_count(after, "step.finish", "failed"),
        ),
        jobs=JobCounts(
            queued=after.open_jobs.get("queued", 0),
            running=after.open_jobs.get("running", 0),
            failed=_count(after, "job.finish", "failed"),
        ),
        queues=list(after.queues),
        runners=_runners(after),
        projections=_lags(after.subscription_statuses),
    )


def _window_s(after: DatabaseState) -> float:
    return (after.at - after.since).total_seconds()


def _count(after: DatabaseState, code: str, status: str | None = None) -> int:
    return sum(event.code == code and status in {None, event.status} for event in after.events)


def _rates(before: DatabaseState | None, after: DatabaseState) -> dict[str, Rate]:
    seconds, now = _window_s(after), _now(before, after)
    counts = {"events": len(after.events)} | {name: _count(after, code) for name, code in _RATED.items()}
    return {
        name: Rate(now=now.get(name), mean=count / seconds if seconds > 0 else 0.0, count=count)
        for name, count in counts.items()
    }


def _now(before: DatabaseState | None, after: DatabaseState) -> dict[str, float]:
    """The known rates since the previous state."""
    if before is None or after.at <= before.at:
        return {}
    # Positions have no gaps: how many events were appended is known even where not all of them were read.
    counts = {"events": sum(after.heads.values()) - sum(before.heads.values())}
    if after.since <= before.at:
        new_events = Counter(
            event.code for event in after.events if event.position > before.heads.get(event.partition, 0)
        )
        counts |= {name: new_events[code] for name, code in _RATED.items()}
    seconds = (after.at - before.at).total_seconds()
    return {name: count / seconds for name, count in counts.items()}


def _runners(after: DatabaseState) -> list[Runner]:
    """Runners by activity, highest first."""
    running = Counter(step.runner for step in after.running)
    images = Counter(event.runner for event in after.events if event.runner and event.code == "artifact.written")
    heard_at_by_runner = {step.runner: step.heard_at for step in sorted(after.running, key=lambda step: step.heard_at)}
    for event in after.events:
        if event.runner is not None:
            heard_at_by_runner[event.runner] = max(
                event.recorded_at, heard_at_by_runner.get(event.runner, event.recorded_at)
            )
    runners = [
        Runner(
            runner=runner,
            running=running[runner],
            images=images[runner],
            heard_s=max(0.0, (after.at - moment).total_seconds()),
        )
        for runner, moment in heard_at_by_runner.items()
    ]
    return sorted(runners, key=lambda runner: (-runner.running, -runner.images, runner.runner))


def _lags(subscription_statuses: Sequence[SubscriptionStatus]) -> list[Lag]:
    """Lags, largest first: by seconds, then by events."""
    lags = []
    ordered = sorted(subscription_statuses, key=lambda status: status.projection)
    for projection, group in groupby(ordered, key=lambda status: status.projection):
        partitions = list(group)
        waits = [status.lag_s for status in partitions if status.lag_s is not None]
        lags.append(
            Lag(projection=projection, lag=sum(status.lag for status in partitions), lag_s=max(waits, default=None))
        )
    return sorted(lags, key=lambda lag: (-(lag.lag_s or 0.0), -lag.lag, lag.projection))
