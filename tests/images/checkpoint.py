"""A tiny pipeline as one file, in the layout that checkpoints have been passed on in since CompVis' first."""

import re
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_UNET = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "down_blocks.0.resnets.0": "input_blocks.1.0",
    "down_blocks.0.downsamplers.0.conv": "input_blocks.2.0.op",
    "down_blocks.1.resnets.0": "input_blocks.3.0",
    "down_blocks.1.attentions.0": "input_blocks.3.1",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
    "up_blocks.0.resnets.0": "output_blocks.0.0",
    "up_blocks.0.attentions.0": "output_blocks.0.1",
    "up_blocks.0.resnets.1": "output_blocks.1.0",
    "up_blocks.0.attentions.1": "output_blocks.1.1",
    "up_blocks.0.upsamplers.0.conv": "output_blocks.1.2.conv",
    "up_blocks.1.resnets.0": "output_blocks.2.0",
    "up_blocks.1.resnets.1": "output_blocks.3.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_VAE = (
    (r"(encoder)\.down_blocks\.(\d)\.resnets\.(\d)", r"\1.down.\2.block.\3"),
    (r"(encoder)\.down_blocks\.(\d)\.downsamplers\.0\.conv", r"\1.down.\2.downsample.conv"),
    (r"mid_block\.resnets\.0", "mid.block_1"),
    (r"mid_block\.resnets\.1", "mid.block_2"),
    (r"mid_block\.attentions\.0\.group_norm", "mid.attn_1.norm"),
    (r"mid_block\.attentions\.0\.to_(q|k|v)\b", r"mid.attn_1.\1"),
    (r"mid_block\.attentions\.0\.to_out\.0", "mid.attn_1.proj_out"),
    (r"conv_norm_out", "norm_out"),
    (r"conv_shortcut", "nin_shortcut"),
)


def checkpoint(folder: Path, file: Path) -> None:
    """Write the weights of a tiny `StableDiffusionPipeline` (`tiny.stable_diffusion`) into one file."""
    weights: dict[str, torch.Tensor] = {}
    for name, value in load_file(folder / "unet" / "diffusion_pytorch_model.safetensors").items():
        weights[f"model.diffusion_model.{_unet(name)}"] = value
    for name, value in load_file(folder / "vae" / "diffusion_pytorch_model.safetensors").items():
        renamed = _vae(name)
        flat = "attn_1" in renamed and renamed.endswith("weight") and value.ndim == 2
        weights[f"first_stage_model.{renamed}"] = value[:, :, None, None].contiguous() if flat else value
    for name, value in load_file(folder / "text_encoder" / "model.safetensors").items():
        bare = name.removeprefix("text_model.")
        weights[f"cond_stage_model.transformer.text_model.{bare}"] = value
    save_file(weights, file)


def _unet(name: str) -> str:
    prefix = max((prefix for prefix in _UNET if name.startswith(prefix)), key=len)
    rest = name[len(prefix) :]
    if ".resnets." in prefix + ".":
        part, _, kind = rest[1:].partition(".")
        rest = f".{_RESNET[part]}.{kind}"
    return _UNET[prefix] + rest


def _vae(name: str) -> str:
    up = re.fullmatch(r"decoder\.up_blocks\.(\d)\.(?:resnets\.(\d)|upsamplers\.0)\.(.*)", name)
    if up is not None:
        stage = 3 - int(up[1])
        name = f"decoder.up.{stage}.block.{up[2]}.{up[3]}" if up[2] else f"decoder.up.{stage}.upsample.{up[3]}"
    for pattern, replacement in _VAE:
        name = re.sub(pattern, replacement, name)
    return name
