"""Chance that falls the same way everywhere: on every machine, Python release and hash seed."""

import hashlib
import random
from collections.abc import Mapping, Sequence
from typing import TypeVar

from PIL import Image

T = TypeVar("T")


class Dice:
    """A source of numbers and textures, decided by the words that it is made from.

    Of `random.Random` only `random()` is promised to stay the same across releases, so nothing else of it is used.
    """

    def __init__(self, *words: str) -> None:
        self._key = hashlib.sha256("\0".join(words).encode()).digest()
        self._random = random.Random(int.from_bytes(self._key, "big"))  # noqa: S311 -- paints pictures, keeps no secrets
        self._textures = 0

    def draw_fraction(self) -> float:
        """Draw a number from 0 to 1."""
        return self._random.random()

    def draw_between(self, low: float, high: float) -> float:
        """Draw a number from `low` to `high`."""
        return low + (high - low) * self._random.random()

    def draw_option(self, options: Sequence[T]) -> T:
        """Draw one of the options."""
        return options[int(self._random.random() * len(options))]

    def draw_named_option(self, options: Mapping[str, T], text: str) -> T:
        """Draw one of the options that the text names or, if it names none, any."""
        named = [name for name in options if name in text.lower()]
        return options[self.draw_option(named or list(options))]

    def draw_texture(self, size: tuple[int, int]) -> Image.Image:
        """Draw a grey image whose every pixel is on its own."""
        self._textures += 1
        stream = hashlib.shake_256(self._key + self._textures.to_bytes(4, "big"))
        return Image.frombytes("L", size, stream.digest(size[0] * size[1]))
