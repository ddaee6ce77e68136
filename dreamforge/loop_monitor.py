"""Measures how long the event loop is held: by a callback that takes long, or by a thread that keeps the GIL."""

import asyncio
import time
from collections import deque

from prometheus_client import Gauge, Histogram

INTERVAL_S = 0.1
WINDOW_S = 60.0

STALL_SECONDS = Histogram(
    "df_event_loop_stall_seconds",
    "How late the event loop was, measured about ten times a second.",
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)
LONGEST_STALL_SECONDS = Gauge(
    "df_event_loop_longest_stall_seconds", "The longest time for which the event loop was late in the last minute."
)


async def monitor_event_loop() -> None:
    """Sleep again and again, and measure how much later than planned the loop woke this up, until cancelled.

    A stall begins up to `INTERVAL_S` before this is due; that part of it is not seen.
    """
    recent = deque([0.0], maxlen=round(WINDOW_S / INTERVAL_S))
    LONGEST_STALL_SECONDS.set_function(lambda: max(tuple(recent)))
    while True:
        due = time.monotonic() + INTERVAL_S
        await asyncio.sleep(INTERVAL_S)
        recent.append(max(0.0, time.monotonic() - due))
        STALL_SECONDS.observe(recent[-1])
