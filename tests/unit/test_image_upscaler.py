"""The image upscaler: twice or four times the size, the same picture."""

import pytest
from PIL import Image, ImageChops, ImageStat

from artifacts.errors import InvalidSource
from orchestrator.step_errors import InvalidInput
from runners.upscalers.image import ImageUpscaler


@pytest.mark.parametrize("scale", [2, 4])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_multiplies_the_size_and_keeps_the_mode(mode: str, scale: int) -> None:
    image = ImageUpscaler().upscale(Image.new(mode, (16, 9)), scale)
    assert (image.mode, image.size) == (mode, (16 * scale, 9 * scale))


def test_shows_the_same_picture() -> None:
    source = Image.radial_gradient("L").resize((48, 48))
    enlarged = ImageUpscaler().upscale(source, 4)
    assert ImageStat.Stat(ImageChops.difference(enlarged.reduce(4), source)).mean[0] < 1


def test_same_source_gives_the_same_pixels() -> None:
    source = Image.linear_gradient("L")
    first, second = (ImageUpscaler().upscale(source, 2).tobytes() for _ in range(2))
    assert first == second


@pytest.mark.parametrize("scale", [0, 1, 3, 8])
def test_rejects_another_scale(scale: int) -> None:
    with pytest.raises(InvalidInput, match=f"by 2 or 4, not by {scale}"):
        ImageUpscaler().upscale(Image.new("RGB", (16, 16)), scale)


@pytest.mark.parametrize("mode", ["1", "P"])
def test_rejects_a_mode_that_pillow_would_enlarge_in_blocks(mode: str) -> None:
    with pytest.raises(InvalidSource, match=f"mode '{mode}'"):
        ImageUpscaler().upscale(Image.new(mode, (16, 16)), 2)
