"""The common part of upscalers with a model: scales, tiles, and smaller tiles after memory ran out."""

from collections.abc import Callable
from typing import ClassVar, Protocol

import torch
from PIL import Image

from orchestrator.events import DeviceMemory, MemoryMeasure, Rendering
from orchestrator.step_errors import InvalidInput, OutOfMemory
from runners.engines.memory import MemoryMeter, device_name, is_out_of_memory, memory_text, release_memory
from runners.engines.protocol import Enlarge, ImageSpec, RenderListener
from runners.upscalers.tiling import enlarge_tiled

_MIN_TILE_PIXELS = 32
_OVERLAP_PIXELS = 16


class UpscalerNetwork(Protocol):
    """An open model that enlarges images. scale: by how much. tile: side of a tile of the source, in pixels."""

    engine: ClassVar[str]
    scale: int
    tile: int
    device: torch.device
    dtype: torch.dtype
    versions: dict[str, str]

    def enlarge(self, image: Image.Image, spec: ImageSpec, on_step: Callable[[], None]) -> Image.Image:
        """Return an RGB image `scale` times as wide and as high. on_step: called after each step, if it has steps."""


class _TileProgress:
    """Reports tiles that are done, and repeats the last report after each step of a tile, as a keepalive."""

    def __init__(self, listener: RenderListener) -> None:
        self._listener = listener
        self._at = (0, 1)

    def on_progress(self, done: int, of: int) -> None:
        """`done` of `of` tiles are done."""
        self._at = (done, of)
        self.on_step()

    def on_step(self) -> None:
        """A step of a tile is done."""
        self._listener.step_done([0], *self._at)


def enlarge(
    network: UpscalerNetwork, work: Enlarge, listener: RenderListener, close_unused_models: Callable[[], int]
) -> None:
    """Enlarge an image by the requested scale, and pass it to the listener.

    A model of another scale is applied until the image is large enough; the result is then reduced (Lanczos). `strict`
    forbids this. After memory ran out, tiles are half as large, for this image only. close_unused_models: frees memory.
    Raises `InvalidInput`, `OutOfMemory` and `RenderCancelled`.
    """
    passes = _count_passes(network.scale, work)
    tile = work.tile or network.tile
    source = Image.frombytes("RGB", (work.width, work.height), work.pixels)
    measures: list[MemoryMeasure] = []
    while True:
        meter = MemoryMeter(network.device)
        try:
            listener.inject_fault(work.spec)
            image = _enlarge_repeatedly(network, source, work.spec, passes, tile, listener)
            break
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            error.__traceback__ = None  # its frames hold the tensors
            memory = meter.read()
        close_unused_models()
        release_memory(network.device)
        tile = _halve_tile(tile, work, listener, memory)
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
    listener.image_rendered(0, image, rendering, meter.read())


def _count_passes(scale: int, work: Enlarge) -> int:
    """How many times the model is applied."""
    if scale == work.scale:
        return 1
    if work.strict or scale < 2:
        raise InvalidInput(
            f"the model enlarges by {scale}, not by {work.scale}, and strict_scale rules out another way"
        )
    return 1 if scale > work.scale else 2


def _enlarge_repeatedly(
    network: UpscalerNetwork, source: Image.Image, spec: ImageSpec, passes: int, tile: int, listener: RenderListener
) -> Image.Image:
    image, progress = source, _TileProgress(listener)
    for _ in range(passes):
        image = enlarge_tiled(
            image,
            network.scale,
            lambda part: network.enlarge(part, spec, progress.on_step),
            tile=tile,
            overlap=min(_OVERLAP_PIXELS, tile // 3),
            on_progress=progress.on_progress,
        )
    return image


def _halve_tile(tile: int, work: Enlarge, listener: RenderListener, memory: DeviceMemory | None) -> int:
    """Half the tile's side. Raises `OutOfMemory` if that is too small."""
    possible = work.tile is None and tile // 2 >= _MIN_TILE_PIXELS
    listener.memory_exhausted([0], 1, "tiling" if possible else None, memory)
    if not possible:
        raise OutOfMemory(f"a tile of {tile} pixels did not fit into the device's memory{memory_text(memory)}")
    return tile // 2
