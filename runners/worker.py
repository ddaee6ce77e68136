"""The runner's part of a kind of step: which engine renders it, and what that is asked for."""

from functools import cache
from importlib import import_module
from typing import Any, Protocol, cast

import msgspec
from PIL import Image

from orchestrator.events import Rendering
from orchestrator.plan import item_seed
from orchestrator.state import JobState
from orchestrator.step_kinds import STEP_KINDS
from runners.engines.protocol import ImageSpec, ModelRef, Work
from runners.faults import InjectedFault
from runners.selection import ModelChoices, SelectedEngine


class StepItem(msgspec.Struct, frozen=True):
    """An item of a step to render. image: of the step before; None in the first. injected: a fault, for tests."""

    job: JobState
    step: str
    index: int
    image: Image.Image | None
    injected: InjectedFault | None = None

    @property
    def parameters(self) -> Any:
        """The step's recorded parameters."""
        return self.job.parameters[self.step]

    @property
    def source(self) -> Image.Image:
        """The image of the step before."""
        if self.image is None:
            raise RuntimeError(f"step {self.step} of job {self.job.job_id} has no step before it")
        return self.image

    @property
    def image_spec(self) -> ImageSpec:
        """Prompts and seed, as the engine process is given them."""
        parameters, private = self.job.generate, self.job.private
        return ImageSpec(
            prompt=private.prompt or "",
            negative_prompt=private.negative_prompt,
            seed=item_seed(parameters.seed, parameters.count, self.index),
            injected=self.injected,
        )


class Worker(Protocol):
    """Renders the items of one kind of step. It has no state: one object serves all steps and threads."""

    async def select(self, selection: ModelChoices, parameters: Any) -> SelectedEngine:
        """Select what renders a step. parameters: its recorded parameters. May raise `DatabaseUnavailable`."""

    def render(self, item: StepItem) -> Image.Image:
        """Render an item without a model. Blocks."""

    def build_request(self, model: ModelRef, item: StepItem, previous_rendering: Rendering | None = None) -> Work:
        """Build the request for the engine process. previous_rendering: to make the same pixels again."""


def worker_for(step: str) -> Worker:
    """The worker of a kind of step, imported when it is first needed."""
    return _load_worker(STEP_KINDS[step].worker)


@cache
def _load_worker(name: str) -> Worker:
    module, _, attribute = name.partition(":")
    return cast("Worker", getattr(import_module(module), attribute)())
