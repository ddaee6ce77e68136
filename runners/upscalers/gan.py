"""GAN upscalers: ESRGAN, SwinIR, compact and all other networks that spandrel opens."""

from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from spandrel import ImageModelDescriptor, ModelLoader, UnsupportedModelError

from orchestrator.step_errors import ProviderError
from runners.engines.memory import release_memory
from runners.engines.pipelines import expect_safe_files
from runners.engines.protocol import ImageSpec, ModelRef


class GanUpscaler:
    """An open network that enlarges (an `OpenModel` and a `Network`)."""

    engine: ClassVar[str] = "gan"
    tile = 256

    def __init__(
        self, model: "ImageModelDescriptor[torch.nn.Module]", device: torch.device, dtype: torch.dtype
    ) -> None:
        if dtype == torch.bfloat16 and not model.supports_bfloat16:
            dtype = torch.float16
        if dtype == torch.float16 and not model.supports_half:
            dtype = torch.float32
        self._model = model.to(device=device, dtype=dtype).eval()
        self.scale = model.scale
        self.device = device
        self.dtype = dtype
        self.versions = {name: version(name) for name in ("spandrel", "torch", "torchvision")}

    @property
    def size_bytes(self) -> int:
        """Bytes of the device's memory that its weights use."""
        return sum(weight.nbytes for weight in self._model.model.parameters())

    def close(self) -> None:
        """Release its memory."""
        del self._model
        release_memory(self.device)

    def enlarge(self, image: Image.Image, spec: ImageSpec, on_step: Callable[[], None]) -> Image.Image:
        """The image, `scale` times as wide and as high. The prompt is not used."""
        del spec, on_step
        values = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].to(self.device, self.dtype) / 255
        if self._model.input_channels == 1:
            values = values.mean(1, keepdim=True)
        with torch.inference_mode():
            large = self._model(values)[0].float().clamp(0, 1)
        if large.shape[0] == 1:
            large = large.expand(3, -1, -1)
        # Round to the nearest of 256 values: truncation would darken every image by half a value.
        pixels = (large[:3] * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
        return Image.fromarray(pixels, "RGB")


def open_gan(ref: ModelRef, device: torch.device, dtype: torch.dtype) -> GanUpscaler:
    """Open a file, or a folder with one. Raises `ProviderError` if it is no network that enlarges RGB images."""
    path = _find_weights_file(ref)
    expect_safe_files(ref, path)
    try:
        model = ModelLoader(device="cpu").load_from_file(path)
    except (OSError, ValueError, RuntimeError, SafetensorError, UnsupportedModelError) as error:
        raise ProviderError(f"model {ref.path} can't be opened: {error}") from error
    if not isinstance(model, ImageModelDescriptor) or model.scale < 2 or model.input_channels not in {1, 3}:
        raise ProviderError(f"model {ref.path} is a {model.architecture.name} that enlarges no RGB image")
    return GanUpscaler(model, device, dtype)


def _find_weights_file(ref: ModelRef) -> Path:
    path = Path(ref.path)
    if not path.is_dir():
        return path
    files = sorted(file for file in path.rglob("*") if file.suffix in {".safetensors", ".pth"})
    if len(files) != 1:
        raise ProviderError(f"model {ref.path} must hold one .safetensors file; it holds {len(files)}")
    return files[0]
