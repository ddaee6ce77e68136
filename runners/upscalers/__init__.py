"""Upscalers enlarge images: `image` in the runner's process; `gan` and `diffusion` in the engine process."""

from typing import Protocol

from PIL import Image


class Upscaler(Protocol):
    """Renders the items of an upscale step."""

    @property
    def impl(self) -> str:
        """Its value in a job's field `impl`."""

    @property
    def scales(self) -> frozenset[int]:
        """The supported scales."""

    def upscale(self, image: Image.Image, scale: int) -> Image.Image:
        """Return the image `scale` times as wide and as high. Blocks; several threads may call it at once."""
