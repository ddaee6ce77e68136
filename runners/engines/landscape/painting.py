"""A picture in the making: the sky with its light and stars, then the ground, layer before layer."""

from collections.abc import Iterable

from PIL import Image

from runners.engines.landscape.brushes import (
    SMOOTH_RESAMPLING,
    Point,
    Size,
    Stencil,
    fit_size,
    light_mask,
    lookup_table,
    smoke_image,
    vertical_gradient,
    winding_line,
)
from runners.engines.landscape.dice import Dice
from runners.engines.landscape.palette import Color, Palette, mix_colors

SOFT_PIXELS = 192 * 192
"""The sky has no outlines; it is painted on at most this many pixels."""

HALO_LEVELS = (150, 104, 67, 37, 17, 4, 0, 0, 0, 0, 0)
DISC_LEVELS = (255,) * 13 + (0,) * 7
CLOUD_LEVELS = (0, 0, 0, 0, 0, 85, 170, 170, 170, 170)
SHADOW_LEVELS = (0, 0, 0, 0, 0, 60, 120, 120, 120, 120)
CORNER_LEVELS = (0, 0, 0, 10, 40, 80, 110)
"""Curves: of light from its middle outwards, of cover from the thinnest smoke to the thickest."""


class Painting:
    """A picture that begins as a sky; scenes add what stands before it."""

    def __init__(self, palette: Palette, dice: Dice, size: Size) -> None:
        self.palette = palette
        self.dice = dice
        self.size = size
        self.aspect = size[0] / size[1]
        self.horizon = dice.draw_between(0.56, 0.72)
        self._sun = (dice.draw_between(0.18, 0.82), dice.draw_between(0.2, self.horizon - 0.06))
        self.image = self._paint_sky().resize(size, SMOOTH_RESAMPLING)
        self._add_stars()
        self._add_glow(self.image, dice.draw_between(0.05, 0.1), DISC_LEVELS)

    def count_side_by_side(self, on_a_square: float, at_most: int) -> int:
        """Return how many things stand side by side here, given how many do on a square picture."""
        return max(1, min(at_most, round(on_a_square * self.aspect)))

    def ridge_outline(self, depth: float, base: float, height: float, *, sharp: bool = False) -> list[Point]:
        """Return the outline of a chain of hills, or of mountains if sharp, around the level `base`."""
        samples, bends = max(16, min(1024, self.size[0] // 2)), self.count_side_by_side(3 + 2 * depth, 128)
        line = winding_line(self.dice, samples, bends, sharp=sharp)
        return [(index / (samples - 1), base - height * rise) for index, rise in enumerate(line)]

    def add_ground(self, outline: Iterable[Point], depth: float) -> None:
        """Paint all below an outline, with mist in the valleys of what is far."""
        stencil = Stencil(self.size)
        stencil.polygon([(0.0, 2.0), *outline, (1.0, 2.0)])
        mask = stencil.mask()
        if box := mask.getbbox():
            color = self.palette.land_color_at(depth)
            mist = mix_colors(color, mix_colors(self.palette.horizon, self.palette.sky, 0.25), 0.5 * (1 - depth))
            rows = (box[2] - box[0], box[3] - box[1])
            self.image.paste(
                vertical_gradient(rows, (color, mix_colors(color, mist, 0.5), mist, mist)), box, mask.crop(box)
            )

    def paint_stencil(self, stencil: Stencil, color: Color) -> None:
        """Paint one colour through a stencil."""
        self.image.paste(color, (0, 0), stencil.mask())

    def darken_corners(self) -> None:
        """Lead the eye to the middle."""
        self.image.paste(
            mix_colors(self.palette.zenith, (0, 0, 0), 0.6),
            (0, 0),
            light_mask(CORNER_LEVELS).resize(self.size, SMOOTH_RESAMPLING),
        )

    def _paint_sky(self) -> Image.Image:
        palette, size = self.palette, fit_size(self.size, SOFT_PIXELS)
        middle = (
            mix_colors(palette.zenith, palette.sky, 0.6),
            palette.sky,
            mix_colors(palette.sky, palette.horizon, 0.55),
        )
        sky = Image.new("RGB", size, palette.horizon)
        sky.paste(
            vertical_gradient((size[0], int(size[1] * self.horizon) + 1), (palette.zenith, *middle, palette.horizon))
        )
        sunny = (
            mix_colors(palette.sky, palette.glow, 0.35),
            mix_colors(palette.horizon, palette.glow, 0.5),
            palette.glow,
        )
        for colors, rows, cover in ((sunny, 4, CLOUD_LEVELS), ((palette.zenith, palette.sky), 3, SHADOW_LEVELS)):
            clouds = smoke_image(self.dice, size, (self.count_side_by_side(2, 64), rows), octaves=5)
            sky.paste(vertical_gradient(size, colors), (0, 0), clouds.point(lookup_table(cover)))
        self._add_glow(sky, 1.6, HALO_LEVELS)
        self._add_glow(sky, 0.5, HALO_LEVELS)
        return sky

    def _add_stars(self) -> None:
        dice, stencil = self.dice, Stencil(self.size)
        for _ in range(int(self.palette.stars * self.count_side_by_side(120, 960))):
            center = (dice.draw_fraction(), dice.draw_fraction() * dice.draw_fraction() * self.horizon)
            stencil.dot(
                center,
                dice.draw_fraction() * dice.draw_fraction() * dice.draw_fraction() / 300,
                int(dice.draw_between(70, 255)),
            )
        self.paint_stencil(stencil, self.palette.glow)

    def _add_glow(self, image: Image.Image, reach: float, levels: tuple[int, ...]) -> None:
        """Light a round around the sun, or the moon; `reach` is a fraction of the shorter side."""
        across = max(2, int(reach * min(image.size)))
        left, top = int(self._sun[0] * image.width - across / 2), int(self._sun[1] * image.height - across / 2)
        mask = light_mask(levels).resize((across, across), SMOOTH_RESAMPLING)
        image.paste(self.palette.glow, (left, top, left + across, top + across), mask)
