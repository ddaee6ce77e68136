"""The fake engine: invented landscapes, so that everything but the model can be run and looked at."""

from PIL import Image

from runners.engines import ImageRequest
from runners.engines.landscape import paint


class FakeEngine:
    """An engine without a model. The picture depends on prompt, seed and size, and on nothing else."""

    def render(self, request: ImageRequest) -> Image.Image:
        """Paint the request's landscape; the same one on every machine."""
        return paint(request.prompt, request.seed, (request.width, request.height))
