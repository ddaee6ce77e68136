"""The runner's part of an upscale step."""

from PIL import Image

from model_registry.parameters import find_violation
from orchestrator.events import ModelKind, Rendering
from orchestrator.parameters import UpscaleParams
from orchestrator.step_errors import InvalidInput
from runners.engines.protocol import Enlarge, ModelRef
from runners.selection import Selected, Selection, selected
from runners.upscalers.image import ImageUpscaler
from runners.worker import Item

_KINDS: dict[str, ModelKind] = {"gan": "gan-upscaler", "diffusion": "diffusion-upscaler"}
_RESAMPLING = Selected(engine="image", source="fake")


class UpscaleWorker:
    """Enlarges images: with a model, or else by resampling."""

    async def select(self, selection: Selection, asked: UpscaleParams) -> Selected:
        """Select a model of the kind and for the scale that the job asks for, or resampling."""
        if asked.impl == "image" or (asked.impl == "auto" and selection.models is None):
            return _RESAMPLING
        engine = "gan" if asked.impl == "auto" else asked.impl
        kind, wanted = _KINDS[engine], {"scale": asked.scale}
        found = await selection.first(kind, lambda one: find_violation(one.parameters_schema, wanted) is None)
        if found is not None:
            return selected(engine, found)
        if asked.impl == "auto":
            return _RESAMPLING
        why = "this runner has no models" if selection.models is None else "see `dreamforge models add`"
        problem = InvalidInput(f"no {kind} for scale {asked.scale} is registered and enabled; {why}")
        return Selected(engine=engine, source=engine, problem=problem)

    def render(self, item: Item) -> Image.Image:
        """Resample an image."""
        return ImageUpscaler().upscale(item.source, item.asked.scale)

    def request(self, model: ModelRef, item: Item, again: Rendering | None = None) -> Enlarge:
        """Request one enlarged image."""
        asked: UpscaleParams = item.asked
        opaque = item.source.convert("RGB")
        return Enlarge(
            model=model,
            scale=asked.scale,
            strict=asked.strict_scale,
            width=opaque.width,
            height=opaque.height,
            pixels=opaque.tobytes(),
            spec=item.spec,
            tile=None if again is None else again.tile,
        )
