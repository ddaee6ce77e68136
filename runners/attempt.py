"""Buffers the results of an attempt until they are committed: stored items, progress events, and the first failure."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import msgspec
import structlog

from orchestrator.decisions import ProgressEvent
from orchestrator.events import (
    ArtifactWritten,
    DeviceMemory,
    EngineLost,
    MemoryMeasure,
    SamplingBatch,
    SamplingOom,
    SamplingTick,
)
from orchestrator.state import StepState
from orchestrator.step_errors import StepFailure, Unexpected, to_step_error

_MIN_TICK_INTERVAL_S = 1.0
"""Seconds between two recorded sampling ticks of a step, at least."""

_log = structlog.get_logger(__name__)


class AttemptFailure(msgspec.Struct, frozen=True):
    """Why an attempt failed. item_index: the item that failed; None for the attempt as a whole."""

    item_index: int | None
    cause: StepFailure


class AttemptBatch(msgspec.Struct, frozen=True):
    """Items and progress events to commit together."""

    items: list[ArtifactWritten]
    progress_events: list[ProgressEvent]


class AttemptBuffer:
    """The results of an attempt that are not yet committed."""

    def __init__(self, step: StepState) -> None:
        self._step = step
        self._items: list[ArtifactWritten] = []
        self._progress_events: list[ProgressEvent] = []
        self._ticked_at = 0.0
        self._closed = False
        self._changed = asyncio.Event()
        self.failure: AttemptFailure | None = None
        self.given_up = False

    def add_item(self, item: ArtifactWritten) -> None:
        """Add an item whose image is stored."""
        self._items.append(item)
        self._changed.set()

    def close(self) -> None:
        """End the buffer: no more results will be added."""
        self._closed = True
        self._changed.set()

    def give_up(self, cause: StepFailure | None = None) -> None:
        """End the attempt now. Only what was added before is committed."""
        self.given_up = True
        if cause is not None and self.failure is None:
            self.failure = AttemptFailure(None, cause)
        self.close()

    async def next_batch(self, timeout_s: float) -> AttemptBatch | None:
        """Wait for results. Returns an empty batch after `timeout_s`, None when there will be no more."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while not (self._items or self._progress_events or self._closed):
                    self._changed.clear()
                    await self._changed.wait()
        found = AttemptBatch(self._items, self._progress_events)
        self._items, self._progress_events = [], []
        return None if self._closed and not (found.items or found.progress_events) else found

    @contextmanager
    def record_item_failure(self, item_index: int | None) -> Iterator[None]:
        """Record the first failure of an item's work; None: of work that all items need."""
        try:
            yield
        except Exception as error:  # noqa: BLE001  # an engine may break in any way
            cause = to_step_error(error)
            if isinstance(cause, Unexpected):
                _log.exception("item failed unexpectedly", item_index=item_index)
        else:
            return
        if self.failure is None:
            self.failure = AttemptFailure(item_index, cause)

    # What the engine reports (`runners.engines.batching.AttemptListener`) ---------------------------------------------

    def step_done(self, items: list[int], done: int, of: int) -> None:
        """Report progress: `done` of `of` sampling steps. Recorded once a second at most."""
        now = time.monotonic()
        if now - self._ticked_at >= _MIN_TICK_INTERVAL_S:
            self._ticked_at = now
            self._add_progress_event(SamplingTick(**self._step.identity, items=items, done=done, of=of))

    def batch_rendered(self, items: list[int], size: int, memory: DeviceMemory | None) -> None:
        """Report that items were rendered in a batch of `size` images."""
        self._add_progress_event(SamplingBatch(**self._step.identity, items=items, size=size, memory=memory))

    def memory_exhausted(
        self, items: list[int], size: int, measure: MemoryMeasure | None, memory: DeviceMemory | None
    ) -> None:
        """Report that memory ran out, and the measure that is tried next."""
        self._add_progress_event(
            SamplingOom(**self._step.identity, items=items, size=size, next=measure, memory=memory)
        )

    def engine_lost(self, items: list[int], reason: str) -> None:
        """Report that the engine process died, or hung and was killed."""
        self._add_progress_event(EngineLost(**self._step.identity, items=items, reason=reason))

    def _add_progress_event(self, event: ProgressEvent) -> None:
        self._progress_events.append(event)
        self._changed.set()
