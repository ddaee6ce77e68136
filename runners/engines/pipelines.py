"""Opens text-to-image pipelines of any family that diffusers supports."""

import inspect
import itertools
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import diffusers
import torch
from safetensors import SafetensorError, safe_open

from model_registry.files import select_unsafe_files
from orchestrator.step_errors import InvalidInput, ProviderError
from runners.engines.memory import release_memory
from runners.engines.protocol import ModelRef

_SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {}),
    "dpmpp_2m_karras": (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "dpmsolver++", "solver_order": 2, "use_karras_sigmas": True},
    ),
    "euler": ("EulerDiscreteScheduler", {}),
    "unipc": ("UniPCMultistepScheduler", {}),
}
"""The API's scheduler names, with diffusers' classes and settings (see its table of k-diffusion names)."""

_UNUSED_COMPONENTS = ("safety_checker", "feature_extractor", "image_encoder")
_SDXL_WEIGHT_NAME = "conditioner.embedders.1.model.ln_final.weight"


class Pipeline:
    """An open pipeline (an `OpenModel`)."""

    def __init__(self, ref: ModelRef, pipe: Any, device: torch.device) -> None:
        pipe.set_progress_bar_config(disable=True)
        self.ref = ref
        self.pipe = pipe.to(device)
        self.parameters = frozenset(inspect.signature(pipe.__call__).parameters)
        self.device = device
        self._scheduler = pipe.scheduler
        self._vae_dtype = getattr(getattr(pipe, "vae", None), "dtype", None)

    @property
    def size_bytes(self) -> int:
        """Bytes of the device's memory that its weights use."""
        return weights_bytes(self.pipe)

    @property
    def size_multiple(self) -> int:
        """An image's width and height must be multiples of it. Transformers use patches of two latents."""
        patch = 2 if getattr(self.pipe, "transformer", None) is not None else 1
        return int(getattr(self.pipe, "vae_scale_factor", 8)) * patch

    def close(self) -> None:
        """Release its memory."""
        device = self.device
        del self.pipe
        release_memory(device)

    def set_scheduler(self, name: str | None, on_step: Callable[[int], None]) -> str:
        """Set a new scheduler: by name, or the model's own (None). Returns the name of its class.

        on_step: called after each step with the number of steps done. It wraps the scheduler, since not every pipeline
        has a callback. Raises `InvalidInput` for a flow-matching model, which none of the named schedulers can sample.
        """
        if self._vae_dtype is not None:  # SDXL's VAE switches to float32, and does not switch back after an error
            self.pipe.vae.to(dtype=self._vae_dtype)
        own = self._scheduler
        kind: Any = type(own)
        changes: dict[str, Any] = {}
        if name is not None:
            if "flow" in str(own.config.get("prediction_type", "")) or "FlowMatch" in type(own).__name__:
                raise InvalidInput(f"scheduler {name} can't sample this model, which wants {type(own).__name__}")
            class_name, changes = _SCHEDULERS[name]
            kind = getattr(diffusers, class_name)
        scheduler = kind.from_config(own.config, **changes)
        scheduler.step = with_step_callback(scheduler.step, on_step)
        self.pipe.scheduler = scheduler
        return str(kind.__name__)


def with_step_callback(step: Callable[..., Any], on_step: Callable[[int], None]) -> Callable[..., Any]:
    """Wrap a scheduler's step to call back after it. Keeps the signature, which pipelines inspect."""
    count = itertools.count(1)

    @wraps(step)
    def step_and_report(*args: Any, **kwargs: Any) -> Any:
        result = step(*args, **kwargs)
        on_step(next(count))
        return result

    return step_and_report


def weights_bytes(pipe: Any) -> int:
    """Bytes of memory that the weights of a pipeline's components use."""
    modules = [component for component in pipe.components.values() if isinstance(component, torch.nn.Module)]
    return sum(weight.nbytes for module in modules for weight in [*module.parameters(), *module.buffers()])


def open_pipeline(ref: ModelRef, device: torch.device, dtype: torch.dtype) -> Pipeline:
    """Open a folder in diffusers' layout, a single .safetensors file, or a repository of a hub.

    Raises `ProviderError` if it is none of them, is no text-to-image pipeline, or may run code and is not trusted.
    """
    path = Path(ref.path)
    try:
        if path.is_file():
            pipe = _open_single_file(path, dtype)
        elif path.is_dir():
            pipe = _open_folder(ref, path, dtype)
        else:
            pipe = diffusers.DiffusionPipeline.from_pretrained(
                ref.path, dtype=dtype, use_safetensors=None if ref.trusted else True
            )
    except (OSError, ValueError, AttributeError, ImportError, SafetensorError) as error:
        raise ProviderError(f"model {ref.path} can't be opened: {error}") from error
    wants = inspect.signature(pipe.__call__).parameters
    if "prompt" not in wants or ("image" in wants and wants["image"].default is inspect.Parameter.empty):
        raise ProviderError(f"model {ref.path} is a {type(pipe).__name__}, which makes no image from a prompt alone")
    return Pipeline(ref, pipe, device)


def expect_safe_files(ref: ModelRef, path: Path) -> None:
    """Raise `ProviderError` if a file of the model may run code and the model is not trusted."""
    if ref.trusted:
        return
    files = [path] if path.is_file() else path.rglob("*")
    if found := select_unsafe_files(files):
        raise ProviderError(
            f"model {ref.path} holds {found[0].name}, which may run code of its own when it is opened; use one in "
            "safetensors, or add it with --trust"
        )


def _open_folder(ref: ModelRef, path: Path, dtype: torch.dtype) -> Any:
    expect_safe_files(ref, path)
    config = diffusers.DiffusionPipeline.load_config(path)
    without: dict[str, Any] = {name: None for name in _UNUSED_COMPONENTS if name in config}
    if "requires_safety_checker" in config:
        without["requires_safety_checker"] = False
    return diffusers.DiffusionPipeline.from_pretrained(
        path, dtype=dtype, use_safetensors=None if ref.trusted else True, local_files_only=True, **without
    )


def _open_single_file(path: Path, dtype: torch.dtype) -> Any:
    """Open a checkpoint. Its configuration is in a folder of the same name next to it, or is fetched from the hub."""
    if path.suffix != ".safetensors":
        raise ValueError("a single file must be .safetensors")
    with safe_open(path, framework="pt") as weights:
        is_xl = _SDXL_WEIGHT_NAME in set(weights.keys())  # not a mapping
    kind = diffusers.StableDiffusionXLPipeline if is_xl else diffusers.StableDiffusionPipeline
    config_folder = path.with_suffix("")
    kwargs: dict[str, Any] = {"config": str(config_folder), "local_files_only": True} if config_folder.is_dir() else {}
    return kind.from_single_file(str(path), dtype=dtype, use_safetensors=True, **kwargs)
