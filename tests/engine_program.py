"""An engine process without a model: it paints landscapes by the batch, and says all that a real one says."""

import os
import sys
import time
from pathlib import Path

from eventstore.events import Memory, Rendering
from runners.engines.child import Have, Watching, serve
from runners.engines.landscape import paint
from runners.engines.messages import Enlarge, Ready, Work
from runners.engines.process import EngineConfig
from runners.upscalers.image import ImageUpscaler

STEP_S = 0.02
LATE = "late"
"""A prompt whose injury happens when the pictures before it are handed over: the file PAINTED is there by then."""

MEMORY = Memory(before=1 << 20, peak=3 << 20, after=2 << 20, total=1 << 30)


def begin(config: EngineConfig) -> tuple[Ready, Have]:
    """Start at once."""
    del config
    return Ready(versions={"painter": "1"}, device="cpu"), have


def have(work: Work, watch: Watching) -> None:
    """Paint a batch, or enlarge a picture."""
    wishes = [work.wish] if isinstance(work, Enlarge) else work.wishes
    for wish in wishes:
        if wish.prompt != LATE:
            watch.befall(wish)
    if not isinstance(work, Enlarge) and work.sampling.steps == 0:
        raise ZeroDivisionError
    places = list(range(len(wishes)))
    steps = 4 if isinstance(work, Enlarge) else work.sampling.steps
    for done in range(1, steps + 1):
        time.sleep(STEP_S)
        watch.stepped(places, done, steps)
    for place, wish in enumerate(wishes):
        if wish.prompt == LATE:
            Path(os.environ["PAINTED"]).touch()
            watch.befall(wish)
        if isinstance(work, Enlarge):
            small = paint(wish.prompt, wish.seed, (work.width, work.height))
            image = ImageUpscaler().upscale(small, work.scale)
        else:
            image = paint(wish.prompt, wish.seed, (work.sampling.width, work.sampling.height))
        rendering = Rendering(
            engine="painter",
            device="cpu",
            dtype="uint8",
            versions={"painter": "1"},
            batch_size=len(wishes),
            batch_index=place,
        )
        watch.pixels(place, image, rendering, MEMORY)


if __name__ == "__main__":
    serve(int(sys.argv[1]), begin)
