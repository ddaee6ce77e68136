"""What upscalers with a model have in common: scales, tiles, and what is done when memory runs out."""

from collections.abc import Callable
from typing import ClassVar, Protocol

import torch
from PIL import Image

from orchestrator.events.steps import Measure, Memory, Rendering
from orchestrator.step_errors import InvalidInput, OutOfMemory
from runners.engines.memory import Meter, device_name, figures, is_out_of_memory, release
from runners.engines.protocol import Enlarge, ImageSpec, Watch
from runners.upscalers.tiling import tiled

_SMALLEST_TILE = 32
_OVERLAP = 16


class Network(Protocol):
    """An open model that enlarges pictures. scale: by how much; tile: pixels of a source's side to take at once."""

    engine: ClassVar[str]
    scale: int
    tile: int
    device: torch.device
    dtype: torch.dtype
    versions: dict[str, str]

    def enlarge(self, image: Image.Image, spec: ImageSpec, lived: Callable[[], None]) -> Image.Image:
        """Return an RGB picture `scale` times as wide and as high. lived: called after each step of several."""


class _Progress:
    """Tells of tiles that are done, and between them that the model lives."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._at = (0, 1)

    def told(self, done: int, of: int) -> None:
        """So many tiles are done."""
        self._at = (done, of)
        self.lived()

    def lived(self) -> None:
        """Some more of a tile is done."""
        self._watch.stepped([0], *self._at)


def enlarge(network: Network, work: Enlarge, watch: Watch, make_room: Callable[[], int]) -> None:
    """Enlarge a picture by the scale that was asked for, and hand it over.

    A model of another scale is applied until the picture is large enough, which is then reduced (Lanczos), unless that
    was ruled out. After memory ran out, tiles are half as large, for this picture alone.
    make_room: closes models that are not in use.
    Raises `InvalidInput`, `OutOfMemory` and `Abandoned`.
    """
    passes = _passes(network.scale, work)
    tile = work.tile or network.tile
    source = Image.frombytes("RGB", (work.width, work.height), work.pixels)
    measures: list[Measure] = []
    while True:
        meter = Meter(network.device)
        try:
            watch.inject(work.spec)
            image = _enlarged(network, source, work.spec, passes, tile, watch)
            break
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            error.__traceback__ = None  # its frames hold the tensors
            memory = meter.read()
        make_room()
        release(network.device)
        tile = _smaller(tile, work, watch, memory)
        measures = ["tiling"]
    size = work.width * work.scale, work.height * work.scale
    if image.size != size:
        image = image.resize(size, Image.Resampling.LANCZOS)
    rendering = Rendering(
        engine=network.engine,
        device=device_name(network.device),
        dtype=str(network.dtype).removeprefix("torch."),
        versions=network.versions,
        model_id=work.model.model_id,
        model_sha256=work.model.sha256,
        weights_sha256=work.model.weights_sha256,
        tile=tile,
        measures=measures,
    )
    watch.pixels(0, image, rendering, meter.read())


def _passes(scale: int, work: Enlarge) -> int:
    """How often a model is applied."""
    if scale == work.scale:
        return 1
    if work.strict or scale < 2:
        raise InvalidInput(
            f"the model enlarges by {scale}, not by {work.scale}, and strict_scale rules out another way"
        )
    return 1 if scale > work.scale else 2


def _enlarged(
    network: Network, source: Image.Image, spec: ImageSpec, passes: int, tile: int, watch: Watch
) -> Image.Image:
    image, progress = source, _Progress(watch)
    for _ in range(passes):
        image = tiled(
            image,
            network.scale,
            lambda part: network.enlarge(part, spec, progress.lived),
            tile=tile,
            overlap=min(_OVERLAP, tile // 3),
            told=progress.told,
        )
    return image


def _smaller(tile: int, work: Enlarge, watch: Watch, memory: Memory | None) -> int:
    """Half the tile, if that is not too small."""
    possible = work.tile is None and tile // 2 >= _SMALLEST_TILE
    watch.short([0], 1, "tiling" if possible else None, memory)
    if not possible:
        raise OutOfMemory(f"a tile of {tile} pixels did not fit into the device's memory{figures(memory)}")
    return tile // 2
