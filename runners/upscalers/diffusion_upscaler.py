"""Diffusion upscalers: `StableDiffusionUpscalePipeline` and similar pipelines, which enlarge by 4."""

import inspect
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import diffusers
import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError

from orchestrator.step_errors import ProviderError
from runners.engines.memory import release_memory
from runners.engines.pipelines import expect_safe_files, weights_bytes, with_step_callback
from runners.engines.protocol import ImageSpec, ModelRef

_SAMPLING_STEPS = 30
_GUIDANCE_SCALE = 7.0
_SIDE_MULTIPLE = 8
"""Sides are padded to a multiple of it, and the result is cropped."""


class DiffusionUpscaler:
    """An open pipeline that enlarges (an `OpenModel` and a `Network`)."""

    engine: ClassVar[str] = "diffusion"
    scale = 4
    tile = 128  # what these models were trained on

    def __init__(self, pipe: Any, device: torch.device, dtype: torch.dtype) -> None:
        pipe.set_progress_bar_config(disable=True)
        self._pipe = pipe.to(device)
        self._scheduler = pipe.scheduler
        self.device = device
        self.dtype = dtype
        self.versions = {name: version(name) for name in ("diffusers", "torch", "transformers")}

    @property
    def size_bytes(self) -> int:
        """Bytes of the device's memory that its weights use."""
        return weights_bytes(self._pipe)

    def close(self) -> None:
        """Release its memory."""
        del self._pipe
        release_memory(self.device)

    def enlarge(self, image: Image.Image, spec: ImageSpec, on_step: Callable[[], None]) -> Image.Image:
        """The image, four times as wide and as high, guided by its prompt. Every tile starts from the same noise."""
        right, below = (-side % _SIDE_MULTIPLE for side in image.size)
        padded = Image.fromarray(np.pad(np.asarray(image), ((0, below), (0, right), (0, 0)), "edge"))
        self._pipe.scheduler = scheduler = type(self._scheduler).from_config(self._scheduler.config)
        scheduler.step = with_step_callback(scheduler.step, lambda _: on_step())
        with torch.inference_mode():
            large: Image.Image = self._pipe(
                prompt=spec.prompt,
                negative_prompt=spec.negative_prompt or "",
                image=padded,
                num_inference_steps=_SAMPLING_STEPS,
                guidance_scale=_GUIDANCE_SCALE,
                generator=torch.Generator("cpu").manual_seed(spec.seed),
            ).images[0]
        return large.convert("RGB").crop((0, 0, image.width * self.scale, image.height * self.scale))


def open_upscaler(ref: ModelRef, device: torch.device, dtype: torch.dtype) -> DiffusionUpscaler:
    """Open a folder in diffusers' layout. Raises `ProviderError` if it holds no pipeline that enlarges by 4."""
    path = Path(ref.path)
    expect_safe_files(ref, path)
    try:
        pipe = diffusers.DiffusionPipeline.from_pretrained(
            path, dtype=dtype, use_safetensors=None if ref.trusted else True, local_files_only=True
        )
    except (OSError, ValueError, AttributeError, ImportError, SafetensorError) as error:
        raise ProviderError(f"model {ref.path} can't be opened: {error}") from error
    wants = inspect.signature(pipe.__call__).parameters
    if not {"prompt", "image"} <= wants.keys() or not hasattr(pipe, "low_res_scheduler"):
        raise ProviderError(f"model {ref.path} is a {type(pipe).__name__}, which enlarges no image by 4")
    return DiffusionUpscaler(pipe, device, dtype)
