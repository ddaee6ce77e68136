"""Images that no encoder makes smaller, and `dreamforge up` that makes them: `python -m tests.bench.noise RENDERER`.

RENDERER: `threads` renders in the runner's own threads, `engine` in the engine process, which runs this module, too.
"""

import random
import sys
from functools import partial

from PIL import Image

from dreamforge import engines, loop_monitor
from dreamforge.__main__ import main
from orchestrator.events import Rendering
from orchestrator.parameters import UpscaleParams
from runners import generation
from runners.engine_host.server import ProgressReporter, RenderFunction, serve
from runners.engines.process import EngineConfig, EngineProcess
from runners.engines.protocol import Enlarge, ModelRef, Ready, Work
from runners.selection import ModelChoices, SelectedEngine
from runners.upscalers.image import ImageUpscaler
from runners.upscalers.worker import UpscaleWorker

_BLOCK_BYTES = 2**20
"""Encoders look for repetitions within a shorter distance."""

_MEASURE_EVERY_S = 0.02
_MEASURE_FOR_S = 3600.0


def paint_noise(prompt: str, seed: int, size: tuple[int, int]) -> Image.Image:
    """Noise. It keeps the GIL no longer than a painter does."""
    del prompt
    block = random.Random(seed).randbytes(_BLOCK_BYTES)
    blocks, rest = divmod(size[0] * size[1] * 3, _BLOCK_BYTES)
    return Image.frombytes("RGB", size, b"".join([*[block] * blocks, block[:rest]]))


class _EnlargingWorker(UpscaleWorker):
    """Selects the engine process for the upscale step, too."""

    async def select(self, selection: ModelChoices, parameters: UpscaleParams) -> SelectedEngine:
        del selection, parameters
        return SelectedEngine(engine="gan", source="noise", model=ModelRef(kind="gan-upscaler", path="noise"))


def _render(work: Work, reporter: ProgressReporter) -> None:
    specs = [work.spec] if isinstance(work, Enlarge) else work.specs
    for index, spec in enumerate(specs):
        if isinstance(work, Enlarge):
            source = Image.frombytes("RGB", (work.width, work.height), work.pixels)
            image = ImageUpscaler().upscale(source, work.scale)
        else:
            image = paint_noise(spec.prompt, spec.seed, (work.sampling.width, work.sampling.height))
        rendering = Rendering(
            engine="noise", device="cpu", dtype="uint8", versions={}, batch_size=len(specs), batch_index=index
        )
        reporter.image_rendered(index, image, rendering, None)


def _create_engine(_: EngineConfig) -> tuple[Ready, RenderFunction]:
    return Ready(versions={}, device="cpu"), _render


def _run_service(renderer: str) -> int:
    loop_monitor.INTERVAL_S, loop_monitor.WINDOW_S = _MEASURE_EVERY_S, _MEASURE_FOR_S
    generation.paint = paint_noise  # type: ignore[attr-defined]
    if renderer == "engine":
        engines.EngineProcess = partial(EngineProcess, program=__spec__.name)  # type: ignore[attr-defined, assignment]
        UpscaleWorker.select = _EnlargingWorker.select  # type: ignore[method-assign, assignment]
    sys.argv = ["dreamforge", "--no-env-file", "up"]
    return main()


if __name__ == "__main__":
    if sys.argv[1].isdigit():
        serve(int(sys.argv[1]), _create_engine)
    else:
        sys.exit(_run_service(sys.argv[1]))
