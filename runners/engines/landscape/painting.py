"""A picture in the making: the sky with its light and stars, then the ground, layer before layer."""

from collections.abc import Iterable

from PIL import Image

from runners.engines.landscape.brushes import (
    SMOOTH,
    Point,
    Size,
    Stencil,
    curve,
    fitted,
    gradient,
    light,
    smoke,
    winding,
)
from runners.engines.landscape.dice import Dice
from runners.engines.landscape.palette import Color, Palette, mix

SOFT_PIXELS = 192 * 192
"""The sky has no outlines; it is painted on at most this many pixels."""

HALO = (150, 104, 67, 37, 17, 4, 0, 0, 0, 0, 0)
DISC = (255,) * 13 + (0,) * 7
CLOUDS = (0, 0, 0, 0, 0, 85, 170, 170, 170, 170)
SHADOWS = (0, 0, 0, 0, 0, 60, 120, 120, 120, 120)
CORNERS = (0, 0, 0, 10, 40, 80, 110)
"""Curves: of light from its middle outwards, of cover from the thinnest smoke to the thickest."""


class Painting:
    """A picture that begins as a sky; scenes add what stands before it."""

    def __init__(self, palette: Palette, dice: Dice, size: Size) -> None:
        self.palette = palette
        self.dice = dice
        self.size = size
        self.aspect = size[0] / size[1]
        self.horizon = dice.between(0.56, 0.72)
        self._sun = (dice.between(0.18, 0.82), dice.between(0.2, self.horizon - 0.06))
        self.image = self._sky().resize(size, SMOOTH)
        self._add_stars()
        self._shine(self.image, dice.between(0.05, 0.1), DISC)

    def abreast(self, on_a_square: float, at_most: int) -> int:
        """Return how many things stand side by side here, given how many do on a square picture."""
        return max(1, min(at_most, round(on_a_square * self.aspect)))

    def ridge(self, depth: float, base: float, height: float, *, sharp: bool = False) -> list[Point]:
        """Return the outline of a chain of hills, or of mountains if sharp, around the level `base`."""
        samples, bends = max(16, min(1024, self.size[0] // 2)), self.abreast(3 + 2 * depth, 128)
        line = winding(self.dice, samples, bends, sharp=sharp)
        return [(index / (samples - 1), base - height * rise) for index, rise in enumerate(line)]

    def add_ground(self, outline: Iterable[Point], depth: float) -> None:
        """Paint all below an outline, with mist in the valleys of what is far."""
        stencil = Stencil(self.size)
        stencil.polygon([(0.0, 2.0), *outline, (1.0, 2.0)])
        mask = stencil.mask()
        if box := mask.getbbox():
            color = self.palette.far(depth)
            mist = mix(color, mix(self.palette.horizon, self.palette.sky, 0.25), 0.5 * (1 - depth))
            rows = (box[2] - box[0], box[3] - box[1])
            self.image.paste(gradient(rows, (color, mix(color, mist, 0.5), mist, mist)), box, mask.crop(box))

    def add(self, stencil: Stencil, color: Color) -> None:
        """Paint one colour through a stencil."""
        self.image.paste(color, (0, 0), stencil.mask())

    def darken_corners(self) -> None:
        """Lead the eye to the middle."""
        self.image.paste(mix(self.palette.zenith, (0, 0, 0), 0.6), (0, 0), light(CORNERS).resize(self.size, SMOOTH))

    def _sky(self) -> Image.Image:
        palette, size = self.palette, fitted(self.size, SOFT_PIXELS)
        middle = (mix(palette.zenith, palette.sky, 0.6), palette.sky, mix(palette.sky, palette.horizon, 0.55))
        sky = Image.new("RGB", size, palette.horizon)
        sky.paste(gradient((size[0], int(size[1] * self.horizon) + 1), (palette.zenith, *middle, palette.horizon)))
        sunny = (mix(palette.sky, palette.glow, 0.35), mix(palette.horizon, palette.glow, 0.5), palette.glow)
        for colors, rows, cover in ((sunny, 4, CLOUDS), ((palette.zenith, palette.sky), 3, SHADOWS)):
            clouds = smoke(self.dice, size, (self.abreast(2, 64), rows), octaves=5)
            sky.paste(gradient(size, colors), (0, 0), clouds.point(curve(cover)))
        self._shine(sky, 1.6, HALO)
        self._shine(sky, 0.5, HALO)
        return sky

    def _add_stars(self) -> None:
        dice, stencil = self.dice, Stencil(self.size)
        for _ in range(int(self.palette.stars * self.abreast(120, 960))):
            center = (dice.share(), dice.share() * dice.share() * self.horizon)
            stencil.dot(center, dice.share() * dice.share() * dice.share() / 300, int(dice.between(70, 255)))
        self.add(stencil, self.palette.glow)

    def _shine(self, image: Image.Image, reach: float, levels: tuple[int, ...]) -> None:
        """Light a round around the sun, or the moon; `reach` is a fraction of the shorter side."""
        across = max(2, int(reach * min(image.size)))
        left, top = int(self._sun[0] * image.width - across / 2), int(self._sun[1] * image.height - across / 2)
        mask = light(levels).resize((across, across), SMOOTH)
        image.paste(self.palette.glow, (left, top, left + across, top + across), mask)
