"""The upscaler `image`, which uses no model."""

from PIL import Image

from artifacts.errors import InvalidSource
from orchestrator.step_errors import InvalidInput

_ALLOWED_SCALES = (2, 4)


class ImageUpscaler:
    """Resamples with Lanczos. It adds no detail and keeps the image's mode."""

    def upscale(self, image: Image.Image, scale: int) -> Image.Image:
        """Return the picture, `scale` times as wide and as high."""
        if scale not in _ALLOWED_SCALES:
            raise InvalidInput(f"the image upscaler enlarges by 2 or 4, not by {scale}")
        if image.mode in {"1", "P"}:  # Pillow would silently use nearest-neighbour
            raise InvalidSource(f"an image of mode {image.mode!r} can't be enlarged smoothly; convert it to RGB")
        return image.resize((image.width * scale, image.height * scale), Image.Resampling.LANCZOS)
