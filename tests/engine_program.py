"""An engine process without a model: it draws landscapes in batches, and sends all messages of a real one."""

import os
import sys
import time
from pathlib import Path

from PIL import Image

from orchestrator.events import DeviceMemory, Rendering
from runners.engine_host.server import ProgressReporter, RenderFunction, serve
from runners.engines.landscape import paint
from runners.engines.process import EngineConfig
from runners.engines.protocol import Enlarge, Ready, Work
from runners.upscalers.image import ImageUpscaler

STEP_S = 0.02
LATE = "late"
"""A prompt whose injected fault waits for the images before it: the file PAINTED is there by then."""

MEMORY = DeviceMemory(before=1 << 20, peak=3 << 20, after=2 << 20, total=1 << 30)


def begin(config: EngineConfig) -> tuple[Ready, RenderFunction]:
    """Start without imports."""
    del config
    return Ready(versions={"painter": "1"}, device="cpu"), render


def render(work: Work, watch: ProgressReporter) -> None:
    """Draw a batch, or enlarge an image."""
    specs = [work.spec] if isinstance(work, Enlarge) else work.specs
    for spec in specs:
        if spec.prompt != LATE:
            watch.inject_fault(spec)
    if not isinstance(work, Enlarge) and work.sampling.steps == 0:
        raise ZeroDivisionError
    places = list(range(len(specs)))
    steps = 4 if isinstance(work, Enlarge) else work.sampling.steps
    for done in range(1, steps + 1):
        time.sleep(STEP_S)
        watch.step_done(places, done, steps)
    for index, spec in enumerate(specs):
        if spec.prompt == LATE:
            Path(os.environ["PAINTED"]).touch()
            watch.inject_fault(spec)
        if isinstance(work, Enlarge):
            small = Image.frombytes("RGB", (work.width, work.height), work.pixels)
            image = ImageUpscaler().upscale(small, work.scale)
        else:
            image = paint(spec.prompt, spec.seed, (work.sampling.width, work.sampling.height))
        rendering = Rendering(
            engine="painter",
            device="cpu",
            dtype="uint8",
            versions={"painter": "1"},
            batch_size=len(specs),
            batch_index=index,
        )
        watch.image_rendered(index, image, rendering, MEMORY)


if __name__ == "__main__":
    serve(int(sys.argv[1]), begin)
