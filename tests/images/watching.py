"""Whom an engine tells how it gets on, in a test."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from orchestrator.events import DeviceMemory, MemoryMeasure, Rendering
from runners.engines.protocol import ImageSpec, RenderCancelled


class ProgressReporter:
    """Keeps what it is told. give_up_at: after how many steps nobody wants the pictures any more.

    counted: the device counts its memory, as a CPU does not.
    """

    def __init__(self, *, give_up_at: int | None = None, counted: bool = False) -> None:
        self.images: dict[int, Image.Image] = {}
        self.renderings: dict[int, Rendering] = {}
        self.steps: list[tuple[list[int], int, int]] = []
        self.measures: list[tuple[int, MemoryMeasure | None]] = []
        self._give_up_at = give_up_at
        self._counted = counted

    def model_still_opening(self) -> None:
        """Tiny models are open at once, nearly."""

    def step_done(self, items: list[int], done: int, of: int) -> None:
        if self._give_up_at is not None and done >= self._give_up_at:
            raise RenderCancelled
        self.steps.append((items, done, of))

    def memory_exhausted(
        self, items: list[int], size: int, measure: MemoryMeasure | None, memory: DeviceMemory | None
    ) -> None:
        assert items
        assert (memory is not None) == self._counted
        self.measures.append((size, measure))

    def image_rendered(self, item: int, image: Image.Image, rendering: Rendering, memory: DeviceMemory | None) -> None:
        assert (memory is not None) == self._counted
        self.images[item] = image
        self.renderings[item] = rendering

    def inject_fault(self, spec: ImageSpec) -> None:
        if spec.injected is not None:
            raise MemoryError

    def values(self, item: int = 0) -> NDArray[np.int64]:
        """A picture's pixels."""
        return np.asarray(self.images[item]).astype(np.int64)


class Starved(ProgressReporter):
    """Runs out of memory so many times."""

    def __init__(self, times: int, *, counted: bool = False) -> None:
        super().__init__(counted=counted)
        self._left = times

    def inject_fault(self, spec: ImageSpec) -> None:
        del spec
        if self._left > 0:
            self._left -= 1
            raise MemoryError
