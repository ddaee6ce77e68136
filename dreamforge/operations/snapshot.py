"""What `dreamforge top` shows, computed from two successive states of the database. Pure: no I/O, no clock."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from itertools import groupby

import msgspec

from projections.subscription_status import SubscriptionStatus

WINDOW_LENGTH = timedelta(seconds=60)
MAX_WINDOW_EVENTS = 5000
"""The most events of a window: with more events, the window is shorter."""


class WindowEvent(msgspec.Struct, frozen=True, kw_only=True):
    """An event in the window. status: of a step or job that ended. runner: None if another role appended it."""

    partition: int
    position: int
    recorded_at: datetime
    code: str
    status: str | None = None
    runner: str | None = None


class QueueCounts(msgspec.Struct, frozen=True, kw_only=True):
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
    queues: Sequence[QueueCounts]
    running: Sequence[RunningStep]
    subscription_statuses: Sequence[SubscriptionStatus]


class EventRate(msgspec.Struct, frozen=True, kw_only=True):
    """The rate of an event code: per second since the previous state (now), and in the window (mean, count).

    now: None if unknown: for the first state, and if more events were appended than were read.
    """

    now: float | None
    mean: float
    count: int


class StepCounts(msgspec.Struct, frozen=True, kw_only=True):
    """How attempts at steps ended in the window. retried: includes hand-backs."""

    succeeded: int
    retried: int
    failed: int


class JobCounts(msgspec.Struct, frozen=True, kw_only=True):
    """Open jobs according to the read model, and jobs that failed in the window."""

    queued: int
    running: int
    failed: int


class RunnerActivity(msgspec.Struct, frozen=True, kw_only=True):
    """A runner that runs steps or appended events in the window. running: steps. heard_s: age of its newest event."""

    runner: str
    running: int
    images: int
    heard_s: float


class ProjectionLag(msgspec.Struct, frozen=True, kw_only=True):
    """A subscription's lag over all partitions. lag: in events. lag_s: the longest, in seconds; None without lag."""

    projection: str
    lag: int
    lag_s: float | None


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """What is shown at one time. window_s: length of the window."""

    at: datetime
    window_s: float
    rates: dict[str, EventRate]
    steps: StepCounts
    jobs: JobCounts
    queues: list[QueueCounts]
    runners: list[RunnerActivity]
    projections: list[ProjectionLag]


_RATED_EVENT_CODES = {"jobs_created": "job.created", "jobs_ended": "job.finish", "images": "artifact.written"}
"""The events whose rates are shown, by name."""


def start_positions(heads: Mapping[int, int], previous_state: DatabaseState | None) -> dict[int, int]:
    """The position of each partition after which to read: new events, limited to `MAX_WINDOW_EVENTS` in all."""
    most = max(1, MAX_WINDOW_EVENTS // len(heads))
    previous_heads = {} if previous_state is None else previous_state.heads
    return {partition: max(previous_heads.get(partition, 0), head - most) for partition, head in heads.items()}


def select_window_events(
    at: datetime, previous_state: DatabaseState | None, starts: Mapping[int, int], new_events: Iterable[WindowEvent]
) -> tuple[datetime, list[WindowEvent]]:
    """The start of the window, and all events since then, oldest first.

    starts: the positions after which the new events were read (see `start_positions`).
    """
    since = at - WINDOW_LENGTH
    events = list(new_events)
    previous_heads: Mapping[int, int] = {}
    if previous_state is not None:
        since, previous_heads = max(since, previous_state.since), previous_state.heads
    # If older events were not read, the window begins at the first event that was read.
    first_times = {
        event.partition: event.recorded_at for event in events if event.position == starts[event.partition] + 1
    }
    cut_times = [
        first for partition, first in first_times.items() if starts[partition] > previous_heads.get(partition, 0)
    ]
    if previous_state is not None:
        events += previous_state.events
    events.sort(key=lambda event: (event.recorded_at, event.partition, event.position))
    if len(events) > MAX_WINDOW_EVENTS:
        events = events[-MAX_WINDOW_EVENTS:]
        cut_times.append(events[0].recorded_at)
    since = max([since, *cut_times])
    return since, [event for event in events if event.recorded_at >= since]


def previous_if_same_log(previous_state: DatabaseState | None, heads: Mapping[int, int]) -> DatabaseState | None:
    """The previous state; None if a head has decreased, because it is then of another log."""
    if previous_state is None or any(
        heads.get(partition, 0) < head for partition, head in previous_state.heads.items()
    ):
        return None
    return previous_state


def make_snapshot(previous_state: DatabaseState | None, state: DatabaseState) -> Snapshot:
    """The snapshot from two states. Without a previous state, the rates are unknown."""
    return Snapshot(
        at=state.at,
        window_s=_window_length_s(state),
        rates=_event_rates(previous_if_same_log(previous_state, state.heads), state),
        steps=StepCounts(
            succeeded=_count_events(state, "step.finish", "succeeded"),
            retried=_count_events(state, "step.retry"),
            failed=_count_events(state, "step.finish", "failed"),
        ),
        jobs=JobCounts(
            queued=state.open_jobs.get("queued", 0),
            running=state.open_jobs.get("running", 0),
            failed=_count_events(state, "job.finish", "failed"),
        ),
        queues=list(state.queues),
        runners=_runner_activities(state),
        projections=_projection_lags(state.subscription_statuses),
    )


def _window_length_s(state: DatabaseState) -> float:
    return (state.at - state.since).total_seconds()


def _count_events(state: DatabaseState, code: str, status: str | None = None) -> int:
    return sum(event.code == code and status in {None, event.status} for event in state.events)


def _event_rates(previous_state: DatabaseState | None, state: DatabaseState) -> dict[str, EventRate]:
    seconds, now = _window_length_s(state), _current_rates(previous_state, state)
    counts = {"events": len(state.events)} | {
        name: _count_events(state, code) for name, code in _RATED_EVENT_CODES.items()
    }
    return {
        name: EventRate(now=now.get(name), mean=count / seconds if seconds > 0 else 0.0, count=count)
        for name, count in counts.items()
    }


def _current_rates(previous_state: DatabaseState | None, state: DatabaseState) -> dict[str, float]:
    """The known rates since the previous state."""
    if previous_state is None or state.at <= previous_state.at:
        return {}
    # Positions have no gaps: how many events were appended is known even where not all of them were read.
    counts = {"events": sum(state.heads.values()) - sum(previous_state.heads.values())}
    if state.since <= previous_state.at:
        new_events = Counter(
            event.code for event in state.events if event.position > previous_state.heads.get(event.partition, 0)
        )
        counts |= {name: new_events[code] for name, code in _RATED_EVENT_CODES.items()}
    seconds = (state.at - previous_state.at).total_seconds()
    return {name: count / seconds for name, count in counts.items()}


def _runner_activities(state: DatabaseState) -> list[RunnerActivity]:
    """Runners by activity, highest first."""
    running = Counter(step.runner for step in state.running)
    images = Counter(event.runner for event in state.events if event.runner and event.code == "artifact.written")
    heard_at_by_runner = {step.runner: step.heard_at for step in sorted(state.running, key=lambda step: step.heard_at)}
    for event in state.events:
        if event.runner is not None:
            heard_at_by_runner[event.runner] = max(
                event.recorded_at, heard_at_by_runner.get(event.runner, event.recorded_at)
            )
    runners = [
        RunnerActivity(
            runner=runner,
            running=running[runner],
            images=images[runner],
            heard_s=max(0.0, (state.at - moment).total_seconds()),
        )
        for runner, moment in heard_at_by_runner.items()
    ]
    return sorted(runners, key=lambda runner: (-runner.running, -runner.images, runner.runner))


def _projection_lags(subscription_statuses: Sequence[SubscriptionStatus]) -> list[ProjectionLag]:
    """Lags, largest first: by seconds, then by events."""
    lags = []
    ordered = sorted(subscription_statuses, key=lambda status: status.projection)
    for projection, group in groupby(ordered, key=lambda status: status.projection):
        partitions = list(group)
        waits = [status.lag_s for status in partitions if status.lag_s is not None]
        lags.append(
            ProjectionLag(
                projection=projection, lag=sum(status.lag for status in partitions), lag_s=max(waits, default=None)
            )
        )
    return sorted(lags, key=lambda lag: (-(lag.lag_s or 0.0), -lag.lag, lag.projection))
