"""Pictures to bytes and back.

Equal pictures give equal bytes: nothing of the clock, the machine or the attempt goes in.
"""

from io import BytesIO

from PIL import Image, JpegImagePlugin, PngImagePlugin

from artifacts.errors import InvalidSource
from orchestrator.parameters import ImageFormat

CONTENT_TYPES: dict[ImageFormat, str] = {"png": "image/png", "jpg": "image/jpeg"}

PNG_LEVEL = 3
"""The last level before photographs cost a multiple of the time, for a few percent of the size."""


def encode(image: Image.Image, fmt: ImageFormat) -> bytes:
    """Encode a picture; as JPEG, which knows no transparency, it loses its alpha channel."""
    body = BytesIO()
    if fmt == "png":
        image.save(body, "PNG", compress_level=PNG_LEVEL)
    else:
        opaque = image if image.mode in {"L", "RGB"} else image.convert("RGB")
        opaque.save(body, "JPEG", quality=95, subsampling="4:4:4")
    return body.getvalue()


def content_type(fmt: ImageFormat) -> str:
    """Return the media type of a format."""
    return CONTENT_TYPES[fmt]


def size_of(body: bytes) -> tuple[int, int]:
    """Width and height, as the header tells them; raise `InvalidSource` if there is none."""
    try:
        return _opened(body).size
    except InvalidSource:
        raise
    except Exception as error:  # as in `decode`
        raise InvalidSource(f"the source is not a readable image: {error}") from error


def decode(body: bytes, max_pixels: int) -> Image.Image:
    """Decode a PNG or JPEG wholly; raise `InvalidSource` if it is broken or would unfold to more than `max_pixels`."""
    try:
        image = _opened(body)
        if image.width * image.height <= max_pixels:
            image.load()
            return image
    except (InvalidSource, MemoryError):
        raise
    except Exception as error:  # Pillow's decoders answer foreign bytes with a dozen kinds of exception
        raise InvalidSource(f"the source is not a readable image: {error}") from error
    raise InvalidSource(
        f"the source is {image.width}x{image.height}, more than the {max_pixels} pixels allowed; raise DF_MAX_PIXELS"
    )


def _opened(body: bytes) -> Image.Image:
    """Read the header alone.

    `Image.open` would apply the process-wide `MAX_IMAGE_PIXELS`, and try formats that no job writes.
    """
    if body.startswith(b"\x89PNG\r\n\x1a\n"):
        return PngImagePlugin.PngImageFile(BytesIO(body))
    if body.startswith(b"\xff\xd8\xff"):
        return JpegImagePlugin.JpegImageFile(BytesIO(body))
    raise InvalidSource(f"the source is neither PNG nor JPEG: it begins with {body[:8]!r}")
