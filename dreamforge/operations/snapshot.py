"""What `dreamforge top` shows, computed from two readings of the database. Pure: no I/O, no clock."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from itertools import groupby

import msgspec

from projections.subscription_status import SubscriptionStatus

WINDOW = timedelta(seconds=60)
MOST_EVENTS = 5000
"""How many of the newest events a reading holds: the window is shorter where more came within it."""


class Happened(msgspec.Struct, frozen=True, kw_only=True):
    """What is looked at of an event. status: how a step or job ended; runner: who wrote it, if a runner did."""

    partition: int
    position: int
    recorded_at: datetime
    code: str
    status: str | None = None
    runner: str | None = None


class Queue(msgspec.Struct, frozen=True, kw_only=True):
    """A queue. hidden: claimed, or deferred; oldest_s: for how long the oldest visible command has waited."""

    queue: str
    visible: int
    hidden: int
    oldest_s: float | None


class Running(msgspec.Struct, frozen=True, kw_only=True):
    """A step that a runner works on, and when its job last heard of that runner."""

    runner: str
    heard_at: datetime


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """The database at one moment, by its own clock.

    heads: each partition's newest position. events: all from `since` on, oldest first. open_jobs: how many, by status.
    """

    at: datetime
    heads: Mapping[int, int]
    since: datetime
    events: Sequence[Happened]
    open_jobs: Mapping[str, int]
    queues: Sequence[Queue]
    running: Sequence[Running]
    subscription_statuses: Sequence[SubscriptionStatus]


class Rate(msgspec.Struct, frozen=True, kw_only=True):
    """How often something happens, a second since the reading before (now), and in the window (mean, count).

    now: None where it is not known: at the first reading, and where more came since than is counted.
    """

    now: float | None
    mean: float
    count: int


class Steps(msgspec.Struct, frozen=True, kw_only=True):
    """How attempts at steps ended in the window; a step that is handed back is tried again, too."""

    succeeded: int
    retried: int
    failed: int


class JobCounts(msgspec.Struct, frozen=True, kw_only=True):
    """The open jobs, as far as the projector has come, and those that failed in the window."""

    queued: int
    running: int
    failed: int


class Runner(msgspec.Struct, frozen=True, kw_only=True):
    """A runner that works, or wrote something in the window. running: steps; heard_s: since its newest event."""

    runner: str
    running: int
    images: int
    heard_s: float


class Lag(msgspec.Struct, frozen=True, kw_only=True):
    """A subscription's partitions summed up. lag: events that wait; lag_s: the longest wait, None where none does."""

    projection: str
    lag: int
    lag_s: float | None


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """All that is shown at one moment. window_s: for how long back events are counted."""

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


def share(heads: Mapping[int, int], before: Reading | None) -> dict[int, int]:
    """After which position of each partition to read: what is new, but no more in all than a reading holds."""
    most = max(1, MOST_EVENTS // len(heads))
    seen = {} if before is None else before.heads
    return {partition: max(seen.get(partition, 0), head - most) for partition, head in heads.items()}


def window(
    at: datetime, before: Reading | None, starts: Mapping[int, int], fresh: Iterable[Happened]
) -> tuple[datetime, list[Happened]]:
    """The events to count at a moment, oldest first, and since when they are all that happened.

    starts: after which positions the fresh ones were read (see `share`).
    """
    since = at - WINDOW
    events = list(fresh)
    seen: Mapping[int, int] = {}
    if before is not None:
        since, seen = max(since, before.since), before.heads
    # Where older ones were left out, nothing is known of the time before the first that was read.
    firsts = {one.partition: one.recorded_at for one in events if one.position == starts[one.partition] + 1}
    cut = [first for partition, first in firsts.items() if starts[partition] > seen.get(partition, 0)]
    if before is not None:
        events += before.events
    events.sort(key=lambda one: (one.recorded_at, one.partition, one.position))
    if len(events) > MOST_EVENTS:
        events = events[-MOST_EVENTS:]
        cut.append(events[0].recorded_at)
    since = max([since, *cut])
    return since, [one for one in events if one.recorded_at >= since]


def continued(before: Reading | None, heads: Mapping[int, int]) -> Reading | None:
    """The reading before, unless the log was set back since: then it tells of another log."""
    if before is None or any(heads.get(partition, 0) < head for partition, head in before.heads.items()):
        return None
    return before


def picture(before: Reading | None, after: Reading) -> Snapshot:
    """What is shown after two readings; rates are not known by the first."""
    return Snapshot(
        at=after.at,
        window_s=_window_s(after),
        rates=_rates(continued(before, after.heads), after),
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


def _window_s(after: Reading) -> float:
    return (after.at - after.since).total_seconds()


def _count(after: Reading, code: str, status: str | None = None) -> int:
    return sum(one.code == code and status in {None, one.status} for one in after.events)


def _rates(before: Reading | None, after: Reading) -> dict[str, Rate]:
    seconds, now = _window_s(after), _now(before, after)
    counts = {"events": len(after.events)} | {name: _count(after, code) for name, code in _RATED.items()}
    return {
        name: Rate(now=now.get(name), mean=count / seconds if seconds > 0 else 0.0, count=count)
        for name, count in counts.items()
    }


def _now(before: Reading | None, after: Reading) -> dict[str, float]:
    """The rates since the reading before, as far as they are known."""
    if before is None or after.at <= before.at:
        return {}
    # Positions have no gaps: how many events were appended is known even where not all of them were read.
    counts = {"events": sum(after.heads.values()) - sum(before.heads.values())}
    if after.since <= before.at:
        fresh = Counter(one.code for one in after.events if one.position > before.heads.get(one.partition, 0))
        counts |= {name: fresh[code] for name, code in _RATED.items()}
    seconds = (after.at - before.at).total_seconds()
    return {name: count / seconds for name, count in counts.items()}


def _runners(after: Reading) -> list[Runner]:
    """The busiest first."""
    running = Counter(one.runner for one in after.running)
    images = Counter(one.runner for one in after.events if one.runner and one.code == "artifact.written")
    heard = {one.runner: one.heard_at for one in sorted(after.running, key=lambda one: one.heard_at)}
    for event in after.events:
        if event.runner is not None:
            heard[event.runner] = max(event.recorded_at, heard.get(event.runner, event.recorded_at))
    found = [
        Runner(
            runner=runner,
            running=running[runner],
            images=images[runner],
            heard_s=max(0.0, (after.at - moment).total_seconds()),
        )
        for runner, moment in heard.items()
    ]
    return sorted(found, key=lambda one: (-one.running, -one.images, one.runner))


def _lags(subscription_statuses: Sequence[SubscriptionStatus]) -> list[Lag]:
    """The worst first: by how long something waits, then by how much."""
    found = []
    ordered = sorted(subscription_statuses, key=lambda one: one.projection)
    for projection, group in groupby(ordered, key=lambda one: one.projection):
        partitions = list(group)
        waits = [one.lag_s for one in partitions if one.lag_s is not None]
        found.append(Lag(projection=projection, lag=sum(one.lag for one in partitions), lag_s=max(waits, default=None)))
    return sorted(found, key=lambda one: (-(one.lag_s or 0.0), -one.lag, one.projection))
