"""The fake engine: draws landscapes without a model, for tests and demos."""

from PIL import Image

from runners.engines import ImageRequest
from runners.engines.landscape import paint


class FakeEngine:
    """An engine without a model. The image depends only on prompt, seed and size."""

    def render(self, request: ImageRequest) -> Image.Image:
        """Draw the request's landscape, the same one on every machine."""
        return paint(request.prompt, request.seed, (request.width, request.height))
