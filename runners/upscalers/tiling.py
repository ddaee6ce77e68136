"""Enlarges an image tile by tile: the network and its memory never hold more than one tile.

Neighbouring tiles overlap by `overlap` pixels. In the middle of the overlap, one tile is blended linearly into the
other. The margins of the overlap are not used, since a network's output is less accurate at the edge of a tile.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

EnlargeFunction = Callable[[Image.Image], Image.Image]
ProgressCallback = Callable[[int, int], None]
PixelArray: TypeAlias = NDArray[np.uint8]

UNUSED_OVERLAP_SHARE = 0.25
"""The part of an overlap at each end that is not used."""

_FULL_WEIGHT = 256
"""Blend weights are integers up to this, so that pixels with equal values in both tiles do not change."""


def enlarge_tiled(
    image: Image.Image, scale: int, enlarge: EnlargeFunction, *, tile: int, overlap: int, on_progress: ProgressCallback
) -> Image.Image:
    """The image, `scale` times as wide and as high.

    enlarge: enlarges an RGB image of at most `tile` pixels in each direction; all tiles have one size. tile: at least
    three times the overlap. on_progress: called with the numbers of finished tiles and of all tiles.

    Memory: the result, one row of tiles, and the memory of `enlarge`. If `enlarge` uses no pixel farther away than a
    quarter of the overlap, the result equals that of enlarging the image in one piece.
    """
    if tile < 3 * overlap:
        raise ValueError(f"a tile of {tile} pixels is less than three overlaps of {overlap}")
    width, height = image.size
    if width <= tile and height <= tile:
        on_progress(0, 1)
        whole = enlarge(image)
        on_progress(1, 1)
        return whole
    columns, rows = tile_starts(width, tile, overlap), tile_starts(height, tile, overlap)
    wide, high = min(tile, width), min(tile, height)
    result = np.empty((height * scale, width * scale, 3), np.uint8)
    done = 0
    for top, fade_down in _starts_with_fades(rows, high, overlap, scale):
        band = np.empty((high * scale, width * scale, 3), np.uint8)
        for left, fade in _starts_with_fades(columns, wide, overlap, scale):
            on_progress(done, len(columns) * len(rows))
            enlarged = enlarge(image.crop((left, top, left + wide, top + high)))
            _blend_tile(band.swapaxes(0, 1), np.asarray(enlarged).swapaxes(0, 1), left * scale, fade)
            done += 1
        _blend_tile(result, band, top * scale, fade_down)
    on_progress(done, done)
    return Image.fromarray(result, "RGB")


def tile_starts(length: int, tile: int, overlap: int) -> list[int]:
    """The offsets of tiles along a side: the fewest with at least `overlap` shared pixels, spread evenly."""
    if length <= tile:
        return [0]
    steps = -(-(length - tile) // (tile - overlap))
    return [round(step * (length - tile) / steps) for step in range(steps + 1)]


def _starts_with_fades(
    begins: list[int], size: int, overlap: int, scale: int
) -> Iterator[tuple[int, tuple[int, int] | None]]:
    """Each tile's offset, and the range in which it is blended with the previous tile, in pixels of the result."""
    yield begins[0], None
    for before, begin in pairwise(begins):
        middle = (begin + before + size) * scale // 2
        half = int(overlap * scale * (1 - 2 * UNUSED_OVERLAP_SHARE)) // 2
        yield begin, (middle - half, middle + half)


def _blend_tile(target: PixelArray, enlarged: PixelArray, begin: int, fade: tuple[int, int] | None) -> None:
    """Copy a tile into the target along the first axis: blend it within `fade`, overwrite after it."""
    start, end = fade or (begin, begin)
    if end > start:
        ramp = ((np.arange(start, end) - start + 0.5) * _FULL_WEIGHT / (end - start)).astype(np.uint16)[:, None, None]
        old, new = target[start:end].astype(np.uint16), enlarged[start - begin : end - begin].astype(np.uint16)
        target[start:end] = ((old * (_FULL_WEIGHT - ramp) + new * ramp + _FULL_WEIGHT // 2) // _FULL_WEIGHT).astype(
            np.uint8
        )
    target[end : begin + len(enlarged)] = enlarged[end - begin :]
