"""The runner's part of a generate step."""

from msgspec.structs import replace
from PIL import Image

from orchestrator.copying import copy_fields
from orchestrator.events import Rendering
from orchestrator.parameters import GenerateParams
from orchestrator.step_errors import ProviderError
from runners.engines.landscape import paint
from runners.engines.protocol import ModelRef, Render, Sampling
from runners.selection import ModelChoices, SelectedEngine, select_registered
from runners.worker import StepItem


class GenerateWorker:
    """Makes images from prompts: with a model, or else landscapes by the fake engine."""

    async def select(self, selection: ModelChoices, parameters: GenerateParams) -> SelectedEngine:
        """Select the model that the job names, else the default one, else the first one, else the fake engine."""
        wanted = parameters.model_id
        fake = SelectedEngine(engine="fake", source="fake", model_id=wanted)
        if selection.models is None:
            return fake
        if wanted is not None:
            found = await selection.models.generator(wanted)
            if found is None:
                problem = ProviderError(f"model {wanted} can't be used any more: it is disabled, damaged or gone")
                return SelectedEngine(engine="diffusers", source=str(wanted), model_id=wanted, problem=problem)
            return select_registered("diffusers", found)
        if selection.default_generator is not None:
            model = ModelRef(kind="generator", path=selection.default_generator)
            return SelectedEngine(engine="diffusers", source=selection.default_generator, model=model)
        found = await selection.first_available("generator", lambda _: True)
        return fake if found is None else select_registered("diffusers", found)

    def render(self, item: StepItem) -> Image.Image:
        """Paint a landscape, by prompt, seed and size alone."""
        parameters, image_spec = item.parameters, item.image_spec
        return paint(image_spec.prompt, image_spec.seed, (parameters.width, parameters.height))

    def build_request(self, model: ModelRef, item: StepItem, previous_rendering: Rendering | None = None) -> Render:
        """Request one image of a batch."""
        work = Render(sampling=copy_fields(item.parameters, Sampling, model=model), specs=[item.image_spec])
        if previous_rendering is None:
            return work
        return replace(
            work,
            original_batch_size=previous_rendering.batch_size,
            original_batch_index=previous_rendering.batch_index,
            measures=previous_rendering.measures,
        )
