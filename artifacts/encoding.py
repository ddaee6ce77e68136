"""Encodes images to PNG or JPEG and decodes them.

Equal images give equal bytes: the result does not depend on the clock, the machine or the attempt.
"""

from io import BytesIO

from PIL import Image, JpegImagePlugin, PngImagePlugin

from artifacts.errors import InvalidSource
from orchestrator.parameters import ImageFormat

CONTENT_TYPES: dict[ImageFormat, str] = {"png": "image/png", "jpg": "image/jpeg"}

PNG_LEVEL = 3
"""Higher levels take several times as long on photographs and save only a few percent of the size."""


def encode(image: Image.Image, fmt: ImageFormat) -> bytes:
    """Encode an image. JPEG has no transparency: it drops the alpha channel."""
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


def image_size(body: bytes) -> tuple[int, int]:
    """The width and height in the image's header. Raises `InvalidSource` if the header is invalid."""
    try:
        return _read_header(body).size
    except InvalidSource:
        raise
    except Exception as error:  # as in `decode`
        raise InvalidSource(f"the source is not a readable image: {error}") from error


def decode(body: bytes, max_pixels: int) -> Image.Image:
    """Decode a PNG or JPEG. Raises `InvalidSource` if it is invalid or has more than `max_pixels` pixels."""
    try:
        image = _read_header(body)
        if image.width * image.height <= max_pixels:
            image.load()
            return image
    except (InvalidSource, MemoryError):
        raise
    except Exception as error:  # on invalid data, Pillow's decoders raise many kinds of exceptions
        raise InvalidSource(f"the source is not a readable image: {error}") from error
    raise InvalidSource(
        f"the source is {image.width}x{image.height}, more than the {max_pixels} pixels allowed; raise DF_MAX_PIXELS"
    )


def _read_header(body: bytes) -> Image.Image:
    """Open an image without decoding its pixels.

    `Image.open` would apply the process-wide `MAX_IMAGE_PIXELS` and try formats that no job writes.
    """
    if body.startswith(b"\x89PNG\r\n\x1a\n"):
        return PngImagePlugin.PngImageFile(BytesIO(body))
    if body.startswith(b"\xff\xd8\xff"):
        return JpegImagePlugin.JpegImageFile(BytesIO(body))
    raise InvalidSource(f"the source is neither PNG nor JPEG: it begins with {body[:8]!r}")
