"""What a step does to one item, in a thread: request to picture, picture to larger picture, picture to bytes."""

from uuid import UUID

from PIL import Image

from artifacts.encoding import decode, encode
from orchestrator.plan import item_seed
from orchestrator.state import JobState
from runners.engines import Engine, ImageRequest
from runners.faults import FaultPlan
from runners.upscalers import Upscaler


class Renderer:
    """What renders without a model. Every method blocks; several threads may call them at once.

    max_pixels: of an image that is read back, as a limit on decompression bombs.
    """

    def __init__(self, engine: Engine, upscaler: Upscaler, *, faults: FaultPlan, max_pixels: int) -> None:
        self._engine = engine
        self._upscaler = upscaler
        self._faults = faults
        self._max_pixels = max_pixels

    def generate(self, job: JobState, item_index: int) -> bytes:
        """Render an item of a generate step."""
        self._check("generate", item_index, job.job_id)
        wanted = job.generate
        request = ImageRequest(
            prompt=job.private.prompt or "",
            negative_prompt=job.private.negative_prompt,
            width=wanted.width,
            height=wanted.height,
            steps=wanted.steps,
            guidance=wanted.guidance,
            scheduler=wanted.scheduler,
            seed=item_seed(wanted.seed, wanted.count, item_index),
        )
        return encode(self._engine.render(request), wanted.format)

    def upscale(self, job: JobState, item_index: int, source: bytes) -> bytes:
        """Upscale an item that generate wrote."""
        self._check("upscale", item_index, job.job_id)
        return encode(self._enlarged(job, decode(source, self._max_pixels)), job.generate.format)

    def _check(self, step: str, item_index: int, job_id: UUID) -> None:
        if self._faults.check(step, item_index, job_id) is not None:
            raise MemoryError  # the only injected fault that leaves the runner itself alive

    def _enlarged(self, job: JobState, picture: Image.Image) -> Image.Image:
        if job.upscale is None:
            raise RuntimeError(f"job {job.job_id} has a step upscale, but no parameters for it")
        return self._upscaler.upscale(picture, job.upscale.scale)
