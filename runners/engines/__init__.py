"""Engines render a request to an image. `fake` draws with Pillow; the other modules run models in their own process."""

from typing import Protocol

import msgspec
from PIL import Image


class ImageRequest(msgspec.Struct, frozen=True):
    """Everything that determines the pixels of one item. Equal requests give equal images."""

    prompt: str
    negative_prompt: str | None
    width: int
    height: int
    steps: int
    guidance: float
    scheduler: str | None
    seed: int


class Engine(Protocol):
    """Renders the items of a generate step."""

    def render(self, request: ImageRequest) -> Image.Image:
        """Render one image of exactly the requested size. Blocks; several threads may call it at once."""
