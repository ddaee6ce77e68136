"""Brushes: gradients, smoke, light, and stencils for shapes with smooth edges."""

import math
from collections.abc import Iterable, Sequence
from functools import cache

from PIL import Image, ImageDraw

from runners.engines.landscape.dice import Dice
from runners.engines.landscape.palette import Color

Size = tuple[int, int]
Point = tuple[float, float]
"""A place as fractions of the picture's width and height, counted from the upper left."""

SMOOTH_RESAMPLING = Image.Resampling.BICUBIC


class Stencil:
    """A mask drawn several times as fine as the picture, then reduced: Pillow draws hard edges only."""

    def __init__(self, size: Size) -> None:
        self._finer = 2 if size[0] * size[1] > 512 * 512 else 4
        self._mask = Image.new("L", (size[0] * self._finer, size[1] * self._finer))
        self._draw = ImageDraw.Draw(self._mask)

    def polygon(self, points: Iterable[Point]) -> None:
        """Cut out a polygon."""
        width, height = self._mask.size
        self._draw.polygon([(x * width, y * height) for x, y in points], 255)

    def rectangle(self, upper_left: Point, lower_right: Point) -> None:
        """Cut out a rectangle."""
        (left, top), (right, bottom), (width, height) = upper_left, lower_right, self._mask.size
        self._draw.rectangle((left * width, top * height, right * width, bottom * height), 255)

    def dot(self, middle: Point, radius: float, level: int) -> None:
        """Cut out a round hole, `radius` being a fraction of the shorter side, to let `level` of 255 through."""
        width, height = self._mask.size
        x, y, reach = middle[0] * width, middle[1] * height, max(self._finer / 3, radius * min(width, height))
        self._draw.ellipse((x - reach, y - reach, x + reach, y + reach), level)

    def mask(self) -> Image.Image:
        """Return the mask, in the picture's size."""
        return self._mask.reduce(self._finer)


def vertical_gradient(size: Size, colors: Sequence[Color]) -> Image.Image:
    """Return an image that runs from the first colour at the top to the last at the bottom."""
    strip = Image.new("RGB", (1, len(colors)))
    for row, color in enumerate(colors):
        strip.putpixel((0, row), color)
    return strip.resize(size, SMOOTH_RESAMPLING)


def smoke_image(dice: Dice, size: Size, grains: Size, *, octaves: int) -> Image.Image:
    """Return grey smoke: random grids of `grains`, twice as many, …, each smoothed and half as strong as the last."""
    layers = dice.draw_texture(grains).resize(size, SMOOTH_RESAMPLING)
    for octave in range(1, octaves):
        finer = (min(grains[0] << octave, size[0]), min(grains[1] << octave, size[1]))
        layers = Image.blend(
            layers, dice.draw_texture(finer).resize(size, SMOOTH_RESAMPLING), 1 / (2 ** (octave + 1) - 1)
        )
    return layers


@cache
def light_mask(levels: tuple[int, ...]) -> Image.Image:
    """Return a small round mask to be resized; `levels` is its strength from the middle out to the corners."""
    return Image.radial_gradient("L").resize((64, 64), SMOOTH_RESAMPLING).point(lookup_table(levels))


@cache
def lookup_table(levels: tuple[int, ...]) -> list[int]:
    """Return a lookup table for `Image.point` that runs through the levels, evenly spaced."""
    table = []
    for value in range(256):
        post, along = divmod(value * (len(levels) - 1) / 255, 1.0)
        here, there = levels[int(post)], levels[min(int(post) + 1, len(levels) - 1)]
        table.append(round(here + (there - here) * along))
    return table


def winding_line(dice: Dice, samples: int, bends: int, *, sharp: bool) -> list[float]:
    """Return a line from left to right that winds about 0, by half at most: `bends` times, twice as often, …."""
    line = [-0.5] * samples
    octaves, fade = (6, 0.5) if sharp else (4, 0.4)
    weight = 1 - fade
    for octave in range(octaves):
        count = bends << octave
        posts = [dice.draw_fraction() for _ in range(count + 2)]
        for index in range(samples):
            post, along = divmod(index * count / samples, 1.0)
            here, there = posts[int(post)], posts[int(post) + 1]
            line[index] += weight * (here + (there - here) * (along if sharp else along * along * (3 - 2 * along)))
        weight *= fade
    return line


def fit_size(size: Size, pixels: int) -> Size:
    """Return the size itself or, in its shape, one of about that many pixels."""
    width, height = size
    if width * height <= pixels:
        return size
    return max(1, math.isqrt(pixels * width // height)), max(1, math.isqrt(pixels * height // width))
