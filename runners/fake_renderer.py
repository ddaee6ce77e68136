"""Renders items without a model, in a thread."""

from artifacts.encoding import decode, encode
from orchestrator.state import JobState
from runners.faults import FaultPlan
from runners.worker import StepItem, worker_for


class FakeRenderer:
    """Renders without a model. Every method blocks; several threads may call them at once.

    max_pixels: of an image that is read back, as a limit on decompression bombs.
    """

    def __init__(self, *, faults: FaultPlan, max_pixels: int) -> None:
        self._faults = faults
        self._max_pixels = max_pixels

    def build_item(self, job: JobState, step: str, index: int, source: bytes | None) -> StepItem:
        """An item to render. source: the file of the step before. Raises `StepFailure` if the item is to fail."""
        injected = self._faults.check(step, index, job.job_id)
        return StepItem(job, step, index, None if source is None else decode(source, self._max_pixels), injected)

    def render(self, job: JobState, step: str, index: int, source: bytes | None) -> bytes:
        """Render an item to the bytes of its file."""
        item = self.build_item(job, step, index, source)
        if item.injected is not None:
            raise MemoryError  # the only injected fault that leaves the runner itself alive
        return encode(worker_for(step).render(item), job.generate.format)
