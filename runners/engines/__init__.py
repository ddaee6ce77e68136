"""Engines turn a request into pixels. `fake` paints with Pillow alone; an engine with a model keeps the same face."""

from typing import Protocol

import msgspec
from PIL import Image


class ImageRequest(msgspec.Struct, frozen=True):
    """Everything that may bear on the pixels of one item; the same request gives the same picture."""

    prompt: str
    negative_prompt: str | None
    width: int
    height: int
    steps: int
    guidance: float
    scheduler: str | None
    seed: int


class Engine(Protocol):
    """What renders the items of a generate step."""

    def render(self, request: ImageRequest) -> Image.Image:
        """Render one picture of exactly the size asked for. Blocks; several threads may call it at once."""
