"""The runner's part of a generate step."""

from msgspec.structs import replace
from PIL import Image

from orchestrator.copying import copy_fields
from orchestrator.events import Rendering
from orchestrator.parameters import GenerateParams
from orchestrator.step_errors import ProviderError
from runners.engines.landscape import paint
from runners.engines.protocol import ModelRef, Render, Sampling
from runners.selection import Selected, Selection, selected
from runners.worker import Item


class GenerateWorker:
    """Makes images from prompts: with a model, or else landscapes by the fake engine."""

    async def select(self, selection: Selection, asked: GenerateParams) -> Selected:
        """Select the model that the job names, else the default one, else the first one, else the fake engine."""
        wanted = asked.model_id
        fake = Selected(engine="fake", source="fake", model_id=wanted)
        if selection.models is None:
            return fake
        if wanted is not None:
            found = await selection.models.generator(wanted)
            if found is None:
                problem = ProviderError(f"model {wanted} can't be used any more: it is disabled, damaged or gone")
                return Selected(engine="diffusers", source=str(wanted), model_id=wanted, problem=problem)
            return selected("diffusers", found)
        if selection.default is not None:
            model = ModelRef(kind="generator", path=selection.default)
            return Selected(engine="diffusers", source=selection.default, model=model)
        found = await selection.first("generator", lambda _: True)
        return fake if found is None else selected("diffusers", found)

    def render(self, item: Item) -> Image.Image:
        """Paint a landscape, by prompt, seed and size alone."""
        asked, spec = item.asked, item.spec
        return paint(spec.prompt, spec.seed, (asked.width, asked.height))

    def request(self, model: ModelRef, item: Item, again: Rendering | None = None) -> Render:
        """Request one image of a batch."""
        work = Render(sampling=copy_fields(item.asked, Sampling, model=model), specs=[item.spec])
        if again is None:
            return work
        return replace(work, as_batch_of=again.batch_size, from_index=again.batch_index, measures=again.measures)
