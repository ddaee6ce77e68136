"""The runner's part of an upscale step."""

from PIL import Image

from model_registry.parameters import find_violation
from orchestrator.events import ModelKind, Rendering
from orchestrator.parameters import UpscaleParams
from orchestrator.step_errors import InvalidInput
from runners.engines.protocol import Enlarge, ModelRef
from runners.selection import ModelChoices, SelectedEngine, select_registered
from runners.upscalers.image import ImageUpscaler
from runners.worker import StepItem

_MODEL_KIND_BY_ENGINE: dict[str, ModelKind] = {"gan": "gan-upscaler", "diffusion": "diffusion-upscaler"}
_RESAMPLING_ENGINE = SelectedEngine(engine="image", source="fake")


class UpscaleWorker:
    """Enlarges images: with a model, or else by resampling."""

    async def select(self, selection: ModelChoices, parameters: UpscaleParams) -> SelectedEngine:
        """Select a model of the kind and for the scale that the job asks for, or resampling."""
        if parameters.impl == "image" or (parameters.impl == "auto" and selection.models is None):
            return _RESAMPLING_ENGINE
        engine = "gan" if parameters.impl == "auto" else parameters.impl
        kind, wanted = _MODEL_KIND_BY_ENGINE[engine], {"scale": parameters.scale}
        found = await selection.first_available(kind, lambda one: find_violation(one.parameters_schema, wanted) is None)
        if found is not None:
            return select_registered(engine, found)
        if parameters.impl == "auto":
            return _RESAMPLING_ENGINE
        why = "this runner has no models" if selection.models is None else "see `dreamforge models add`"
        problem = InvalidInput(f"no {kind} for scale {parameters.scale} is registered and enabled; {why}")
        return SelectedEngine(engine=engine, source=engine, problem=problem)

    def render(self, item: StepItem) -> Image.Image:
        """Resample an image."""
        return ImageUpscaler().upscale(item.source, item.parameters.scale)

    def build_request(self, model: ModelRef, item: StepItem, previous_rendering: Rendering | None = None) -> Enlarge:
        """Request one enlarged image."""
        parameters: UpscaleParams = item.parameters
        opaque = item.source.convert("RGB")
        return Enlarge(
            model=model,
            scale=parameters.scale,
            strict=parameters.strict_scale,
            width=opaque.width,
            height=opaque.height,
            pixels=opaque.tobytes(),
            spec=item.image_spec,
            tile=None if previous_rendering is None else previous_rendering.tile,
        )
