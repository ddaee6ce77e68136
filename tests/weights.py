"""Minimal files that pass the checks of a model."""

from pathlib import Path

import msgspec

CENTRAL = "model.diffusion_model.out.0.weight"
"""The name of a tensor of a complete checkpoint."""


def safetensors(content: bytes = b"weights", name: str = CENTRAL) -> bytes:
    """A file in safetensors with one tensor of these bytes."""
    tensor = {"dtype": "U8", "shape": [len(content)], "data_offsets": [0, len(content)]}
    header = msgspec.json.encode({"__metadata__": {"format": "pt"}, name: tensor})
    return len(header).to_bytes(8, "little") + header + content


PIPELINE = {
    "model_index.json": msgspec.json.encode(
        {
            "_class_name": "StableDiffusionPipeline",
            "_diffusers_version": "0.36.0",
            "requires_safety_checker": True,
            "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
            "image_encoder": [None, None],
            "scheduler": ["diffusers", "DDIMScheduler"],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "unet": ["diffusers", "UNet2DConditionModel"],
        }
    ),
    "scheduler/scheduler_config.json": b"{}",
    "text_encoder/config.json": b"{}",
    "text_encoder/model.safetensors": safetensors(),
    "tokenizer/merges.txt": b"c a\nca s\n",
    "unet/config.json": b"{}",
    "unet/diffusion_pytorch_model.safetensors": safetensors(),
}
"""A generator in diffusers' layout."""

UPSCALER = PIPELINE | {
    "model_index.json": msgspec.json.encode(
        {
            "_class_name": "StableDiffusionUpscalePipeline",
            "low_res_scheduler": ["diffusers", "DDIMScheduler"],
            "unet": ["diffusers", "UNet2DConditionModel"],
        }
    ),
    "low_res_scheduler/scheduler_config.json": b"{}",
}
"""A diffusion upscaler, likewise."""


def lay(folder: Path, files: dict[str, bytes]) -> Path:
    """Write files into a folder."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder
