"""What stands before the sky, from the farthest layer to the nearest."""

from collections.abc import Callable, Iterator, Mapping, Sequence

from PIL import Image, ImageOps

from runners.engines.landscape.brushes import SMOOTH, Point, Stencil, curve, gradient, smoke
from runners.engines.landscape.painting import Painting
from runners.engines.landscape.palette import mix

DEEPENING = (70, 200)
WAVES = (0,) * 9 + (60, 100, 130, 130, 130)
LAMPLIGHT = (255, 214, 140)
HALF_A_PINE = ((0.07, 0.0), (0.5, 0.12), (0.2, 0.4), (0.38, 0.37), (0.15, 0.65), (0.25, 0.62), (0.0, 1.0))


def mountains(painting: Painting) -> None:
    """Paint three chains of mountains, then hills."""
    for depth, base, height in ((0.2, 0.0, 0.7), (0.4, 0.08, 0.6), (0.6, 0.16, 0.4)):
        painting.add_ground(painting.ridge(depth, painting.horizon + base, height, sharp=True), depth)
    for depth, base in ((0.8, 0.86), (1.0, 0.97)):
        painting.add_ground(painting.ridge(depth, base, 0.2), depth)


def hills(painting: Painting) -> None:
    """Paint hills behind hills."""
    for step in range(6):
        depth = (step + 1) / 6
        base = painting.horizon + (0.98 - painting.horizon) * step / 5
        painting.add_ground(painting.ridge(depth, base, 0.3 - 0.12 * depth), depth)


def forest(painting: Painting) -> None:
    """Paint hills, then pines that come closer."""
    for depth, base in ((0.15, 0.04), (0.3, 0.09), (0.45, 0.14)):
        painting.add_ground(painting.ridge(depth, painting.horizon + base, 0.26), depth)
    for depth, base, tall in ((0.62, 0.82, 0.05), (0.8, 0.93, 0.1), (1.0, 1.06, 0.2)):
        painting.add_ground(_pines(painting, painting.ridge(depth, base, 0.12), tall), depth)


def city(painting: Painting) -> None:
    """Paint three rows of houses, the nearer two with lit windows."""
    palette = painting.palette
    for depth in (0.3, 0.65, 1.0):
        houses = list(_houses(painting, depth))
        painting.add_ground([corner for house in houses for corner in house], depth)
        if depth > 0.5:
            lamps = mix(palette.glow, LAMPLIGHT, 0.6)
            painting.add(_windows(painting, houses, 0.01 + 0.008 * depth), mix(palette.far(depth), lamps, depth))


def lake(painting: Painting) -> None:
    """Paint mountains, and water that mirrors them and the sky."""
    for depth, base, height in ((0.25, -0.05, 0.6), (0.5, 0.0, 0.45), (0.8, 0.06, 0.25)):
        painting.add_ground(painting.ridge(depth, painting.horizon + base, height, sharp=True), depth)
    palette, (width, height) = painting.palette, painting.size
    shore = int((painting.horizon + 0.06) * height)
    size = (width, height - shore)
    mirrored = ImageOps.flip(painting.image.crop((0, max(0, shore - size[1]), width, shore)))
    water = mirrored.resize((width // 6 + 1, size[1] // 2 + 1), SMOOTH).resize(size, SMOOTH)
    deepening = Image.linear_gradient("L").point(curve(DEEPENING)).resize(size, SMOOTH)
    water.paste(gradient(size, (mix(palette.sky, palette.land, 0.4), palette.land)), (0, 0), deepening)
    waves = smoke(painting.dice, size, (painting.abreast(6, 96), 40), octaves=3).point(curve(WAVES))
    water.paste(mix(palette.horizon, palette.glow, 0.4), (0, 0), waves)
    painting.image.paste(water, (0, shore))


SCENES: Mapping[str, Callable[[Painting], None]] = {
    "mountain": mountains,
    "hill": hills,
    "forest": forest,
    "city": city,
    "lake": lake,
}
"""Every scene by the word that a prompt may call it by."""


def _pines(painting: Painting, ridge: Sequence[Point], tall: float) -> Iterator[Point]:
    """Yield the outline of a ridge with pines on it."""
    dice, width = painting.dice, tall * 0.34 / min(max(painting.aspect, 0.5), 16)
    middle = 0.0
    while middle < 1 + width:
        foot = ridge[min(int(middle * len(ridge)), len(ridge) - 1)][1]
        height = tall * dice.between(0.5, 1.2)
        yield from ((middle - width * out, foot - height * up) for out, up in HALF_A_PINE)
        yield from ((middle + width * out, foot - height * up) for out, up in reversed(HALF_A_PINE))
        middle += width * dice.between(0.45, 1.3)


def _houses(painting: Painting, depth: float) -> Iterator[list[Point]]:
    """Yield the roof of each house in a row, its left end first: flat, gabled, stepped or with a mast."""
    dice, per_house = painting.dice, (0.7 + 0.5 * depth) / min(max(painting.aspect, 0.6), 24)
    left = -0.02
    while left < 1:
        width = dice.between(0.03, 0.075) * per_house
        tower = dice.share() * dice.share() * dice.share() * dice.share()
        top = painting.horizon + 0.3 * depth * depth - dice.between(0.04, 0.22) - 0.28 * tower
        right, middle = left + width, left + width / 2
        roofs: tuple[list[Point], ...] = (
            [],
            [(middle, top - width * painting.aspect / 2)],
            [(left + width * x, top - up) for x, up in ((0.25, 0), (0.25, 0.018), (0.75, 0.018), (0.75, 0))],
            [(left + width * x, top - up) for x, up in ((0.48, 0), (0.5, 0.07), (0.52, 0))],
        )
        yield [(left, top), *roofs[dice.pick((0, 0, 0, 0, 0, 1, 2, 2, 3))], (right, top)]
        left = right


def _windows(painting: Painting, houses: Sequence[Sequence[Point]], pitch: float) -> Stencil:
    """Return the lit windows, `pitch` apart; some houses are more awake than others."""
    dice, stencil = painting.dice, Stencil(painting.size)
    wide, high = pitch * 0.36 / painting.aspect, pitch * 0.54
    for house in houses:
        (left, top), (right, _) = house[0], house[-1]
        columns, rows = int((right - left) * painting.aspect / pitch), int((1 - top) / pitch / 1.3)
        awake = dice.between(0.1, 0.6)
        for column in range(1, columns):
            x = left + (right - left) * (column - 0.2) / columns
            for row in range(1, rows + 1):
                if dice.share() < awake:
                    y = top + row * pitch * 1.3
                    stencil.rectangle((x, y), (x + wide, y + high))
    return stencil
