"""Enlarges a picture tile by tile, so that neither a network nor its memory ever sees more of it than one tile.

Neighbouring tiles share `overlap` pixels. In the middle of what they share one fades into the other, linearly; a margin
on either side is left out, since a network is less sure of a tile's rim, where it sees only what pads it.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Enlarge = Callable[[Image.Image], Image.Image]
Told = Callable[[int, int], None]
Pixels: TypeAlias = NDArray[np.uint8]

MARGIN = 0.25
"""The part of an overlap at either end that does not count."""

_ONE = 256
"""Weights are parts of this: whole numbers, so that what two tiles agree on stays as it is."""


def tiled(  # what tiling is made of
    image: Image.Image, scale: int, enlarge: Enlarge, *, tile: int, overlap: int, told: Told
) -> Image.Image:
    """The picture, `scale` times as wide and as high.

    enlarge: does so to an RGB picture of `tile` pixels at most in either direction; all that it gets have one size.
    tile: three overlaps at least. told: how many tiles of how many are done.

    Beside the result there are one row of tiles, and what `enlarge` needs. Where `enlarge` looks no further around a
    pixel than a quarter of the overlap, the result is what it would be in one piece.
    """
    if tile < 3 * overlap:
        raise ValueError(f"a tile of {tile} pixels is less than three overlaps of {overlap}")
    width, height = image.size
    if width <= tile and height <= tile:
        told(0, 1)
        whole = enlarge(image)
        told(1, 1)
        return whole
    columns, rows = starts(width, tile, overlap), starts(height, tile, overlap)
    wide, high = min(tile, width), min(tile, height)
    result = np.empty((height * scale, width * scale, 3), np.uint8)
    done = 0
    for top, fade_down in _with_fades(rows, high, overlap, scale):
        band = np.empty((high * scale, width * scale, 3), np.uint8)
        for left, fade in _with_fades(columns, wide, overlap, scale):
            told(done, len(columns) * len(rows))
            piece = enlarge(image.crop((left, top, left + wide, top + high)))
            _lay(band.swapaxes(0, 1), np.asarray(piece).swapaxes(0, 1), left * scale, fade)
            done += 1
        _lay(result, band, top * scale, fade_down)
    told(done, done)
    return Image.fromarray(result, "RGB")


def starts(length: int, tile: int, overlap: int) -> list[int]:
    """Where tiles begin along a side: as few as share `overlap` pixels at least, spread evenly, the last at the end."""
    if length <= tile:
        return [0]
    steps = -(-(length - tile) // (tile - overlap))
    return [round(step * (length - tile) / steps) for step in range(steps + 1)]


def _with_fades(begins: list[int], size: int, overlap: int, scale: int) -> Iterator[tuple[int, tuple[int, int] | None]]:
    """Each tile's begin, and from where to where it takes over from the one before, in pixels of the result."""
    yield begins[0], None
    for before, begin in pairwise(begins):
        middle = (begin + before + size) * scale // 2
        half = int(overlap * scale * (1 - 2 * MARGIN)) // 2
        yield begin, (middle - half, middle + half)


def _lay(onto: Pixels, piece: Pixels, begin: int, fade: tuple[int, int] | None) -> None:
    """Lay a piece over what lies there, along the first axis: it fades in, and counts from there on."""
    start, end = fade or (begin, begin)
    if end > start:
        ramp = ((np.arange(start, end) - start + 0.5) * _ONE / (end - start)).astype(np.uint16)[:, None, None]
        old, new = onto[start:end].astype(np.uint16), piece[start - begin : end - begin].astype(np.uint16)
        onto[start:end] = ((old * (_ONE - ramp) + new * ramp + _ONE // 2) // _ONE).astype(np.uint8)
    onto[end : begin + len(piece)] = piece[end - begin :]
