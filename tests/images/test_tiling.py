"""A picture in tiles is what it is in one piece."""

import itertools
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from runners.upscalers.tiling import enlarge_tiled, tile_starts

Operator = Callable[[Image.Image], Image.Image]


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(values, "RGB")


def enlarged(scale: int, method: Image.Resampling) -> Operator:
    return lambda image: image.resize((image.width * scale, image.height * scale), method)


def sharpened(image: Image.Image) -> Image.Image:
    """A local operator that is no resampling: it looks at a pixel's eight neighbours."""
    return image.filter(ImageFilter.SHARPEN).resize((image.width * 2, image.height * 2), Image.Resampling.NEAREST)


def worst(one: Image.Image, other: Image.Image) -> int:
    assert one.size == other.size
    return int(np.abs(np.asarray(one).astype(int) - np.asarray(other).astype(int)).max())


def in_tiles(image: Image.Image, scale: int, operator: Operator, tile: int = 48, overlap: int = 16) -> Image.Image:
    on_progress: list[tuple[int, int]] = []
    result = enlarge_tiled(
        image, scale, operator, tile=tile, overlap=overlap, on_progress=lambda *done: on_progress.append(done)
    )
    [*_, last] = on_progress
    assert last[0] == last[1]
    assert on_progress == sorted(on_progress)
    return result


@pytest.mark.parametrize("size", [(48, 48), (49, 48), (1, 200), (200, 1), (97, 131), (333, 50), (47, 300)])
@pytest.mark.parametrize(
    ("scale", "operator"),
    [
        (2, enlarged(2, Image.Resampling.NEAREST)),
        (4, enlarged(4, Image.Resampling.LANCZOS)),
        (2, enlarged(2, Image.Resampling.BICUBIC)),
        (2, sharpened),
    ],
    ids=["nearest", "lanczos", "bicubic", "sharpened"],
)
def test_a_local_operator_is_the_same_in_tiles(size: tuple[int, int], scale: int, operator: Operator) -> None:
    """Within 1/255 at every pixel, the seams among them."""
    image = noise(*size)
    assert worst(in_tiles(image, scale, operator), operator(image)) <= 1


@settings(max_examples=60)
@given(
    size=st.tuples(st.integers(1, 200), st.integers(1, 200)),
    overlap=st.integers(8, 24),
    more=st.integers(0, 40),
    scale=st.sampled_from([2, 4]),
)
def test_whatever_the_sizes(size: tuple[int, int], overlap: int, more: int, scale: int) -> None:
    image = noise(*size)
    operator = enlarged(scale, Image.Resampling.NEAREST)
    assert worst(in_tiles(image, scale, operator, 3 * overlap + more, overlap), operator(image)) == 0


@given(length=st.integers(1, 5000), overlap=st.integers(0, 100), more=st.integers(1, 500))
def test_tiles_cover_all_and_share_enough(length: int, overlap: int, more: int) -> None:
    tile = 3 * overlap + more
    begins = tile_starts(length, tile, overlap)
    assert begins[0] == 0
    assert begins[-1] == max(0, length - tile)
    assert all(begin + tile - after >= overlap for begin, after in itertools.pairwise(begins))


def test_tiles_that_disagree_fade_into_each_other() -> None:
    """Given tiles that differ by d everywhere, then no two neighbours differ by more than d over the ramp's width.

    The bound for operators that look at the whole tile: the seam is never steeper than that.
    """
    shades = itertools.cycle([0, 160])

    def shade(image: Image.Image) -> Image.Image:
        return Image.new("RGB", (image.width * 2, image.height * 2), (next(shades),) * 3)

    result = np.asarray(in_tiles(noise(300, 40), 2, shade)).astype(int)
    ramp = 2 * 16 // 2
    assert np.abs(np.diff(result, axis=1)).max() <= 160 / ramp + 1
    assert {0, 160} <= set(result[0, :, 0].tolist())


def test_the_memory_of_a_large_picture_is_bounded() -> None:
    """4096² doubled: beside the picture and its result, a row of tiles and little else."""
    program = """
import resource
from PIL import Image
from runners.upscalers.tiling import enlarge_tiled
image = Image.new("RGB", (4096, 4096), (10, 20, 30))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
def double(one):
    return one.resize((one.width * 2, one.height * 2))
result = enlarge_tiled(image, 2, double, tile=512, overlap=32, on_progress=lambda *_: None)
assert result.getpixel((8191, 8191)) == (10, 20, 30)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(done.stdout) * 1024 < 3 * 8192**2 * 3


def test_a_tile_must_hold_three_overlaps() -> None:
    with pytest.raises(ValueError, match="three overlaps"):
        enlarge_tiled(noise(9, 9), 2, sharpened, tile=8, overlap=4, on_progress=lambda *_: None)
