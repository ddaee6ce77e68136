"""The table of the kinds of steps: what a kind needs stands here, and nowhere else. Pure.

A job's first step is generate. Every later step makes an image of each image of the step before it.
"""

from collections.abc import Callable
from typing import Any

import msgspec

from orchestrator.parameters import Generate, GenerateParams, Upscale, UpscaleParams

ImageSize = tuple[int, int]
"""Width and height in pixels."""


class StepKind(msgspec.Struct, frozen=True, kw_only=True):
    """A kind of step.

    name: of the steps, and of the queue of their commands. request_type: the parameters that a client may give.
    recorded_type: those that a job keeps; shown_parameters: those of them that a step's metadata shows. weight: the
    step's default share of a job's progress. output_size: of the images, by recorded parameters and the size of the
    images before. model_kinds: of the models that can do it. worker: the runner's part of it, a
    `runners.worker.Worker` as `module:Class`; only a runner imports it.
    """

    name: str
    request_type: type[msgspec.Struct]
    recorded_type: type[msgspec.Struct]
    shown_parameters: tuple[str, ...] = ()
    weight: float
    output_size: Callable[[Any, ImageSize], ImageSize]
    model_kinds: tuple[str, ...] = ()
    worker: str


def _generate_size(parameters: GenerateParams, _size_before: ImageSize) -> ImageSize:
    return parameters.width, parameters.height


def _upscale_size(parameters: UpscaleParams, size_before: ImageSize) -> ImageSize:
    return size_before[0] * parameters.scale, size_before[1] * parameters.scale


_STEP_KINDS_IN_ORDER = (
    StepKind(
        name="generate",
        request_type=Generate,
        recorded_type=GenerateParams,
        weight=0.5,
        output_size=_generate_size,
        model_kinds=("generator",),
        worker="runners.generation:GenerateWorker",
    ),
    StepKind(
        name="upscale",
        request_type=Upscale,
        recorded_type=UpscaleParams,
        shown_parameters=("scale", "impl"),
        weight=0.5,
        output_size=_upscale_size,
        model_kinds=("gan-upscaler", "diffusion-upscaler"),
        worker="runners.upscalers.worker:UpscaleWorker",
    ),
)
STEP_KINDS: dict[str, StepKind] = {kind.name: kind for kind in _STEP_KINDS_IN_ORDER}
"""Every kind of step that this release knows, by its name, in the order of a chain."""


def expect_known_steps(*steps: str) -> None:
    """Raise `ValueError` for a name that is no kind of step."""
    for step in steps:
        if step not in STEP_KINDS:
            raise ValueError(f"unknown kind of step {step!r}")


def default_weights() -> dict[str, float]:
    """Each kind's share of the progress of a job of all kinds; the shares sum to 1."""
    total = sum(kind.weight for kind in STEP_KINDS.values())
    return {name: kind.weight / total for name, kind in STEP_KINDS.items()}


def all_queues_sql(columns: str, prefix: str = "q") -> str:
    """SQL for the rows of all queues. prefix: `q` for the commands, `a` for those that could not be read."""
    return " union all ".join(
        f"select '{step}' as queue, {columns} from pgmq.{prefix}_{step}"  # noqa: S608  # constants
        for step in STEP_KINDS
    )
