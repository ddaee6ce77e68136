"""Encoding and decoding: equal pictures give equal bytes, and foreign bytes do no harm."""

import struct
import zlib
from contextlib import suppress
from io import BytesIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageChops, ImageStat

from artifacts.encoding import content_type, decode, encode
from artifacts.errors import InvalidSource
from orchestrator.parameters import ImageFormat

FORMATS: list[ImageFormat] = ["png", "jpg"]
PLENTY = 10**6


def picture(mode: str = "RGB") -> Image.Image:
    bands = [Image.linear_gradient("L"), Image.radial_gradient("L"), Image.linear_gradient("L").rotate(90)]
    return Image.merge("RGB", bands).resize((40, 24)).convert(mode)


@pytest.mark.parametrize("fmt", FORMATS)
def test_equal_pictures_give_equal_bytes(fmt: ImageFormat) -> None:
    assert encode(picture(), fmt) == encode(picture(), fmt)


def test_png_keeps_every_pixel() -> None:
    assert decode(encode(picture(), "png"), PLENTY).tobytes() == picture().tobytes()


def test_jpg_keeps_colours_apart() -> None:
    """Halving the chroma, as JPEG does by default, would turn red and blue columns into one purple."""
    columns = Image.new("RGB", (32, 32), "red")
    for x in range(0, 32, 2):
        columns.paste("blue", (x, 0, x + 1, 32))
    off_by = ImageChops.difference(decode(encode(columns, "jpg"), PLENTY), columns)
    assert max(ImageStat.Stat(off_by).mean) < 8


@pytest.mark.parametrize("mode", ["RGBA", "P", "L", "LA"])
def test_jpg_takes_any_mode(mode: str) -> None:
    assert decode(encode(picture(mode), "jpg"), PLENTY).size == (40, 24)


@pytest.mark.parametrize(
    ("fmt", "media_type", "pillow_name"), [("png", "image/png", "PNG"), ("jpg", "image/jpeg", "JPEG")]
)
def test_content_type_is_what_the_bytes_are(fmt: ImageFormat, media_type: str, pillow_name: str) -> None:
    assert content_type(fmt) == media_type
    assert Image.open(BytesIO(encode(picture(), fmt))).format == pillow_name


@pytest.mark.parametrize("fmt", FORMATS)
def test_rejects_more_pixels_than_allowed(fmt: ImageFormat) -> None:
    body = encode(picture(), fmt)
    assert decode(body, 40 * 24).size == (40, 24)
    with pytest.raises(InvalidSource, match="40x24, more than the 959 pixels allowed"):
        decode(body, 40 * 24 - 1)


def test_rejects_a_bomb_by_its_header_alone() -> None:
    """A few bytes may claim a picture of 120 gigapixels; the process-wide limit of Pillow is left alone."""
    limit = Image.MAX_IMAGE_PIXELS
    with pytest.raises(InvalidSource, match="400000x300000"):
        decode(png_header(400_000, 300_000), 64_000_000)
    assert limit == Image.MAX_IMAGE_PIXELS


def test_own_limit_may_exceed_the_one_of_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert decode(encode(picture(), "png"), PLENTY).size == (40, 24)


@pytest.mark.parametrize("body", [b"", b"<Error>", b"GIF89a", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"\x89PNG"])
def test_rejects_what_is_no_image(body: bytes) -> None:
    with pytest.raises(InvalidSource):
        decode(body, PLENTY)


@pytest.mark.parametrize("fmt", FORMATS)
@settings(max_examples=100)
@given(data=st.data())
def test_damage_is_rejected_or_harmless(fmt: ImageFormat, data: st.DataObject) -> None:
    """However an object was damaged, decoding it ends in a picture or in `InvalidSource`."""
    body = bytearray(encode(picture(), fmt))
    for index in data.draw(st.lists(st.integers(0, len(body) - 1), max_size=8)):
        body[index] = data.draw(st.integers(0, 255))
    end = data.draw(st.integers(0, len(body)))
    with suppress(InvalidSource):
        decode(bytes(body[:end]), PLENTY)


def png_header(width: int, height: int) -> bytes:
    """The first bytes of a PNG that claims a size."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    header = struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return b"\x89PNG\r\n\x1a\n" + header + struct.pack(">I", 1) + b"IDAT"
