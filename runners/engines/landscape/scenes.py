"""What stands before the sky, from the farthest layer to the nearest."""

from collections.abc import Callable, Iterator, Mapping, Sequence

from PIL import Image, ImageOps

from runners.engines.landscape.brushes import (
    SMOOTH_RESAMPLING,
    Point,
    Stencil,
    lookup_table,
    smoke_image,
    vertical_gradient,
)
from runners.engines.landscape.painting import Painting
from runners.engines.landscape.palette import mix_colors

DEEPENING_LEVELS = (70, 200)
WAVE_LEVELS = (0,) * 9 + (60, 100, 130, 130, 130)
LAMPLIGHT = (255, 214, 140)
HALF_A_PINE = ((0.07, 0.0), (0.5, 0.12), (0.2, 0.4), (0.38, 0.37), (0.15, 0.65), (0.25, 0.62), (0.0, 1.0))


def paint_mountains(painting: Painting) -> None:
    """Paint three chains of mountains, then hills."""
    for depth, base, height in ((0.2, 0.0, 0.7), (0.4, 0.08, 0.6), (0.6, 0.16, 0.4)):
        painting.add_ground(painting.ridge_outline(depth, painting.horizon + base, height, sharp=True), depth)
    for depth, base in ((0.8, 0.86), (1.0, 0.97)):
        painting.add_ground(painting.ridge_outline(depth, base, 0.2), depth)


def paint_hills(painting: Painting) -> None:
    """Paint hills behind hills."""
    for step in range(6):
        depth = (step + 1) / 6
        base = painting.horizon + (0.98 - painting.horizon) * step / 5
        painting.add_ground(painting.ridge_outline(depth, base, 0.3 - 0.12 * depth), depth)


def paint_forest(painting: Painting) -> None:
    """Paint hills, then pines that come closer."""
    for depth, base in ((0.15, 0.04), (0.3, 0.09), (0.45, 0.14)):
        painting.add_ground(painting.ridge_outline(depth, painting.horizon + base, 0.26), depth)
    for depth, base, pine_height in ((0.62, 0.82, 0.05), (0.8, 0.93, 0.1), (1.0, 1.06, 0.2)):
        painting.add_ground(
            _pine_ridge_outline(painting, painting.ridge_outline(depth, base, 0.12), pine_height), depth
        )


def paint_city(painting: Painting) -> None:
    """Paint three rows of houses, the nearer two with lit windows."""
    palette = painting.palette
    for depth in (0.3, 0.65, 1.0):
        houses = list(_house_roofs(painting, depth))
        painting.add_ground([corner for house in houses for corner in house], depth)
        if depth > 0.5:
            lamps = mix_colors(palette.glow, LAMPLIGHT, 0.6)
            painting.paint_stencil(
                _lit_windows_stencil(painting, houses, 0.01 + 0.008 * depth),
                mix_colors(palette.land_color_at(depth), lamps, depth),
            )


def paint_lake(painting: Painting) -> None:
    """Paint mountains, and water that mirrors them and the sky."""
    for depth, base, height in ((0.25, -0.05, 0.6), (0.5, 0.0, 0.45), (0.8, 0.06, 0.25)):
        painting.add_ground(painting.ridge_outline(depth, painting.horizon + base, height, sharp=True), depth)
    palette, (width, height) = painting.palette, painting.size
    shore = int((painting.horizon + 0.06) * height)
    size = (width, height - shore)
    mirrored = ImageOps.flip(painting.image.crop((0, max(0, shore - size[1]), width, shore)))
    water = mirrored.resize((width // 6 + 1, size[1] // 2 + 1), SMOOTH_RESAMPLING).resize(size, SMOOTH_RESAMPLING)
    deepening = Image.linear_gradient("L").point(lookup_table(DEEPENING_LEVELS)).resize(size, SMOOTH_RESAMPLING)
    water.paste(vertical_gradient(size, (mix_colors(palette.sky, palette.land, 0.4), palette.land)), (0, 0), deepening)
    waves = smoke_image(painting.dice, size, (painting.count_side_by_side(6, 96), 40), octaves=3).point(
        lookup_table(WAVE_LEVELS)
    )
    water.paste(mix_colors(palette.horizon, palette.glow, 0.4), (0, 0), waves)
    painting.image.paste(water, (0, shore))


SCENES: Mapping[str, Callable[[Painting], None]] = {
    "mountain": paint_mountains,
    "hill": paint_hills,
    "forest": paint_forest,
    "city": paint_city,
    "lake": paint_lake,
}
"""Every scene by the word that a prompt may call it by."""


def _pine_ridge_outline(painting: Painting, ridge_outline: Sequence[Point], pine_height: float) -> Iterator[Point]:
    """Yield the outline of a ridge with pines on it."""
    dice, width = painting.dice, pine_height * 0.34 / min(max(painting.aspect, 0.5), 16)
    middle = 0.0
    while middle < 1 + width:
        foot = ridge_outline[min(int(middle * len(ridge_outline)), len(ridge_outline) - 1)][1]
        height = pine_height * dice.draw_between(0.5, 1.2)
        yield from ((middle - width * out, foot - height * up) for out, up in HALF_A_PINE)
        yield from ((middle + width * out, foot - height * up) for out, up in reversed(HALF_A_PINE))
        middle += width * dice.draw_between(0.45, 1.3)


def _house_roofs(painting: Painting, depth: float) -> Iterator[list[Point]]:
    """Yield the roof of each house in a row, its left end first: flat, gabled, stepped or with a mast."""
    dice, per_house = painting.dice, (0.7 + 0.5 * depth) / min(max(painting.aspect, 0.6), 24)
    left = -0.02
    while left < 1:
        width = dice.draw_between(0.03, 0.075) * per_house
        tower = dice.draw_fraction() * dice.draw_fraction() * dice.draw_fraction() * dice.draw_fraction()
        top = painting.horizon + 0.3 * depth * depth - dice.draw_between(0.04, 0.22) - 0.28 * tower
        right, middle = left + width, left + width / 2
        roofs: tuple[list[Point], ...] = (
            [],
            [(middle, top - width * painting.aspect / 2)],
            [(left + width * x, top - up) for x, up in ((0.25, 0), (0.25, 0.018), (0.75, 0.018), (0.75, 0))],
            [(left + width * x, top - up) for x, up in ((0.48, 0), (0.5, 0.07), (0.52, 0))],
        )
        yield [(left, top), *roofs[dice.draw_option((0, 0, 0, 0, 0, 1, 2, 2, 3))], (right, top)]
        left = right


def _lit_windows_stencil(painting: Painting, houses: Sequence[Sequence[Point]], pitch: float) -> Stencil:
    """Return the lit windows, `pitch` apart; some houses are more awake than others."""
    dice, stencil = painting.dice, Stencil(painting.size)
    wide, high = pitch * 0.36 / painting.aspect, pitch * 0.54
    for house in houses:
        (left, top), (right, _) = house[0], house[-1]
        columns, rows = int((right - left) * painting.aspect / pitch), int((1 - top) / pitch / 1.3)
        awake = dice.draw_between(0.1, 0.6)
        for column in range(1, columns):
            x = left + (right - left) * (column - 0.2) / columns
            for row in range(1, rows + 1):
                if dice.draw_fraction() < awake:
                    y = top + row * pitch * 1.3
                    stencil.rectangle((x, y), (x + wide, y + high))
    return stencil
