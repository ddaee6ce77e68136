"""Upscalers turn a picture into a larger one. `image` resamples it; one with a model keeps the same face."""

from typing import Protocol

from PIL import Image


class Upscaler(Protocol):
    """What renders the items of an upscale step."""

    @property
    def impl(self) -> str:
        """The name that a job's `impl` chooses it by."""

    @property
    def scales(self) -> frozenset[int]:
        """The factors it can enlarge by."""

    def upscale(self, image: Image.Image, scale: int) -> Image.Image:
        """Return the picture `scale` times as wide and as high. Blocks; several threads may call it at once."""
