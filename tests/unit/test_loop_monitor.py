"""The metric of a held event loop."""

import asyncio
import time

from dreamforge.loop_monitor import INTERVAL_S, LONGEST_STALL_SECONDS, STALL_SECONDS, monitor_event_loop
from tests.kit import eventually

HELD_S = 0.3


async def test_a_held_event_loop_shows_in_the_metrics() -> None:
    """Given a callback that takes long, then its time is measured, but for what came before the wake-up was due."""
    sampled = _counted()
    task = asyncio.create_task(monitor_event_loop())

    async def has_measured() -> bool:
        return _counted() > sampled

    await eventually(has_measured, what="a measurement")
    time.sleep(HELD_S)  # noqa: ASYNC251  # holds the loop on purpose
    sampled = _counted()
    await eventually(has_measured, what="the next measurement")
    assert _longest() >= HELD_S - INTERVAL_S
    task.cancel()


async def test_a_free_event_loop_is_measured_too() -> None:
    """So that the share of long stalls among all measurements can be told."""
    before = _counted()
    task = asyncio.create_task(monitor_event_loop())

    async def has_measured_thrice() -> bool:
        return _counted() >= before + 3

    await eventually(has_measured_thrice, what="three measurements")
    task.cancel()


def _counted() -> float:
    [family] = STALL_SECONDS.collect()
    return next(sample.value for sample in family.samples if sample.name.endswith("_count"))


def _longest() -> float:
    [family] = LONGEST_STALL_SECONDS.collect()
    return family.samples[0].value
