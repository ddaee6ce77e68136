"""Opens text-to-image pipelines, whatever family they are of."""

import inspect
import itertools
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import diffusers
import torch
from safetensors import SafetensorError, safe_open

from model_registry.files import risky
from orchestrator.step_errors import InvalidInput, ProviderError
from runners.engines.memory import release
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
"""The contract's names, and diffusers' classes with what makes them so (its guide to k-diffusion's names)."""

_UNWANTED = ("safety_checker", "feature_extractor", "image_encoder")
_XL_KEY = "conditioner.embedders.1.model.ln_final.weight"


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
        """How much of the device's memory its weights take."""
        return weights_bytes(self.pipe)

    @property
    def multiple(self) -> int:
        """What the width and height of its pictures must be multiples of: transformers take patches of two latents."""
        patch = 2 if getattr(self.pipe, "transformer", None) is not None else 1
        return int(getattr(self.pipe, "vae_scale_factor", 8)) * patch

    def close(self) -> None:
        """Give its memory back."""
        device = self.device
        del self.pipe
        release(device)

    def schedule(self, name: str | None, stepped: Callable[[int], None]) -> str:
        """Take a fresh scheduler: the one of a name, or the model's own. Answers its class.

        stepped: told how many steps are done, after each; not every pipeline has a callback, but all have a scheduler.
        Raises `InvalidInput` where the model was trained for flow matching, which none of the names samples.
        """
        if self._vae_dtype is not None:  # SDXL's decodes in float32, and stays so where memory runs out meanwhile
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
        scheduler.step = telling(scheduler.step, stepped)
        self.pipe.scheduler = scheduler
        return str(kind.__name__)


def telling(step: Callable[..., Any], stepped: Callable[[int], None]) -> Callable[..., Any]:
    """A scheduler's step that tells when it is done; pipelines look at its signature, which stays."""
    count = itertools.count(1)

    @wraps(step)
    def told(*args: Any, **given: Any) -> Any:
        result = step(*args, **given)
        stepped(next(count))
        return result

    return told


def weights_bytes(pipe: Any) -> int:
    """How much memory the weights of a pipeline's parts take."""
    modules = [one for one in pipe.components.values() if isinstance(one, torch.nn.Module)]
    return sum(weight.nbytes for module in modules for weight in [*module.parameters(), *module.buffers()])


def open_pipeline(ref: ModelRef, device: torch.device, dtype: torch.dtype) -> Pipeline:
    """Open a folder in diffusers' layout, a single .safetensors file, or a repository of a hub.

    Raises `ProviderError` where it is none of them, is no text-to-image pipeline, or may run code unless trusted.
    """
    path = Path(ref.path)
    try:
        if path.is_file():
            pipe = _single_file(path, dtype)
        elif path.is_dir():
            pipe = _folder(ref, path, dtype)
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


def expect_safe(ref: ModelRef, path: Path) -> None:
    """Raise `ProviderError` if a model's folder or file holds what may run code, unless it is trusted."""
    if ref.trusted:
        return
    files = [path] if path.is_file() else path.rglob("*")
    if found := risky(files):
        raise ProviderError(
            f"model {ref.path} holds {found[0].name}, which may run code of its own when it is opened; use one in "
            "safetensors, or add it with --trust"
        )


def _folder(ref: ModelRef, path: Path, dtype: torch.dtype) -> Any:
    expect_safe(ref, path)
    config = diffusers.DiffusionPipeline.load_config(path)
    left_out: dict[str, Any] = {name: None for name in _UNWANTED if name in config}
    if "requires_safety_checker" in config:
        left_out["requires_safety_checker"] = False
    return diffusers.DiffusionPipeline.from_pretrained(
        path, dtype=dtype, use_safetensors=None if ref.trusted else True, local_files_only=True, **left_out
    )


def _single_file(path: Path, dtype: torch.dtype) -> Any:
    """Open a checkpoint. What it lacks lies in a folder of its name beside it, or is fetched from the hub."""
    if path.suffix != ".safetensors":
        raise ValueError("a single file must be .safetensors")
    with safe_open(path, framework="pt") as weights:
        is_xl = _XL_KEY in set(weights.keys())  # it is no mapping
    kind = diffusers.StableDiffusionXLPipeline if is_xl else diffusers.StableDiffusionPipeline
    beside = path.with_suffix("")
    given: dict[str, Any] = {"config": str(beside), "local_files_only": True} if beside.is_dir() else {}
    return kind.from_single_file(str(path), dtype=dtype, use_safetensors=True, **given)
