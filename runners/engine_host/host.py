"""The engine host: the engines of an engine process, and its model cache."""

from typing import TYPE_CHECKING

import diffusers
import torch
import transformers

from orchestrator.step_errors import ProviderError
from runners.engines.cache import ModelCache, keepalive_while_opening
from runners.engines.diffusion_engine import DiffusionEngine, library_versions
from runners.engines.memory import best_device, best_dtype, device_name, total_bytes
from runners.engines.process import EngineConfig
from runners.engines.protocol import ModelRef, Render, RenderListener, Work
from runners.upscalers.diffusion_upscaler import DiffusionUpscaler, open_upscaler
from runners.upscalers.enlarging import enlarge

if TYPE_CHECKING:
    from runners.upscalers.gan import GanUpscaler


class EngineHost:
    """Renders and enlarges images. Raises `ProviderError` if the device does not exist or cannot be used."""

    def __init__(self, config: EngineConfig) -> None:
        for library in (diffusers.utils, transformers.utils):
            library.logging.disable_progress_bar()
            library.logging.set_verbosity_error()  # their warnings quote prompts
        self._device = best_device() if config.device is None else _device(config.device)
        self._dtype = best_dtype(self._device) if config.dtype is None else getattr(torch, config.dtype)
        budget = total_bytes(self._device) // 2 if config.model_bytes is None else config.model_bytes
        self._models = ModelCache(budget)
        self._diffusion = DiffusionEngine(self._models, self._device, self._dtype, batch_max=config.batch_max)

    @property
    def versions(self) -> dict[str, str]:
        """Versions of the libraries on which an image's exact pixels depend."""
        return library_versions()

    @property
    def device_name(self) -> str:
        """The name of the device that runs models."""
        return device_name(self._device)

    def render(self, work: Work, listener: RenderListener) -> None:
        """Render or enlarge. The listener receives the images."""
        if isinstance(work, Render):
            self._diffusion.render(work, listener)
            return
        network: DiffusionUpscaler | GanUpscaler
        with keepalive_while_opening(listener):
            if work.model.kind == "gan-upscaler":
                network = self._models.get(work.model, self._open_gan)
            else:
                network = self._models.get(work.model, lambda ref: open_upscaler(ref, self._device, self._dtype))
        enlarge(network, work, listener, self._models.close_others)

    def _open_gan(self, ref: ModelRef) -> "GanUpscaler":
        try:
            from runners.upscalers.gan import open_gan  # noqa: PLC0415  # a separate extra
        except ImportError as error:
            raise ProviderError(
                f"this runner can't use GANs ({error}); install the extra: pip install 'dream-forge[gan]'"
            ) from error
        return open_gan(ref, self._device, self._dtype)


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch raises these for an unusable device
        raise ProviderError(f"DF_DEVICE is {name!r}, which this runner can't use: {error}") from None
    return device
