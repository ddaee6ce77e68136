"""What an attempt brings: items that are stored, what its engine tells, and the first failure, which ends it."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import msgspec
import structlog

from eventstore.events import ArtifactWritten, EngineLost, Measure, Memory, SamplingBatch, SamplingOom, SamplingTick
from orchestrator.decisions import Note
from orchestrator.state import StepState
from runners.errors import StepError, Unexpected, classified

_TICK_S = 1.0
"""A step's signs of life come at most so often."""

_log = structlog.get_logger(__name__)


class Failure(msgspec.Struct, frozen=True):
    """What befell which item; None: the attempt as a whole."""

    item_index: int | None
    cause: StepError


class Yield(msgspec.Struct, frozen=True):
    """What an attempt has to tell the log at once."""

    items: list[ArtifactWritten]
    notes: list[Note]


class Harvest:
    """What an attempt at a step has stored, and heard from its engine, and not yet told the log."""

    def __init__(self, step: StepState) -> None:
        self._step = step
        self._items: list[ArtifactWritten] = []
        self._notes: list[Note] = []
        self._ticked_at = 0.0
        self._closed = False
        self._changed = asyncio.Event()
        self.failure: Failure | None = None
        self.given_up = False

    def add(self, item: ArtifactWritten) -> None:
        """An item is stored."""
        self._items.append(item)
        self._changed.set()

    def close(self) -> None:
        """There will be no more."""
        self._closed = True
        self._changed.set()

    def give_up(self, cause: StepError | None = None) -> None:
        """End the attempt, whatever still goes on: what was added so far is all that it brings."""
        self.given_up = True
        if cause is not None and self.failure is None:
            self.failure = Failure(None, cause)
        self.close()

    async def take(self, patience_s: float) -> Yield | None:
        """Wait for something to tell; nothing when patience has run out, None when there will be no more."""
        with suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                while not (self._items or self._notes or self._closed):
                    self._changed.clear()
                    await self._changed.wait()
        found = Yield(self._items, self._notes)
        self._items, self._notes = [], []
        return None if self._closed and not (found.items or found.notes) else found

    @contextmanager
    def item(self, item_index: int | None) -> Iterator[None]:
        """Keep the failure of an item's work, or of what all items need, if it is the first."""
        try:
            yield
        except Exception as error:  # noqa: BLE001  # an engine may break in any way
            cause = classified(error)
            if isinstance(cause, Unexpected):
                _log.exception("an item broke", item_index=item_index)
        else:
            return
        if self.failure is None:
            self.failure = Failure(item_index, cause)

    # What the engine tells (`runners.engines.batches.Report`) -----------------------------------------------------

    def ticked(self, items: list[int], done: int, of: int) -> None:
        """So many steps are done; told once a second at most."""
        now = time.monotonic()
        if now - self._ticked_at >= _TICK_S:
            self._ticked_at = now
            step = self._step
            self._note(
                SamplingTick(
                    step_id=step.step_id, step_name=step.name, attempt=step.attempt, items=items, done=done, of=of
                )
            )

    def rendered(self, items: list[int], size: int, memory: Memory | None) -> None:
        """They were rendered in a batch of `size` images."""
        step = self._step
        self._note(
            SamplingBatch(
                step_id=step.step_id, step_name=step.name, attempt=step.attempt, items=items, size=size, memory=memory
            )
        )

    def short(self, items: list[int], size: int, measure: Measure | None, memory: Memory | None) -> None:
        """Memory ran out; what is tried next."""
        step = self._step
        self._note(
            SamplingOom(
                step_id=step.step_id,
                step_name=step.name,
                attempt=step.attempt,
                items=items,
                size=size,
                next=measure,
                memory=memory,
            )
        )

    def lost(self, items: list[int], reason: str) -> None:
        """The engine process was lost."""
        step = self._step
        self._note(
            EngineLost(step_id=step.step_id, step_name=step.name, attempt=step.attempt, items=items, reason=reason)
        )

    def _note(self, note: Note) -> None:
        self._notes.append(note)
        self._changed.set()
