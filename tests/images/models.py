"""Pipelines of the sizes that people use, with random weights: as fast and as large as the real ones."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from tests.images.tiny import BETAS, tokenizer


def stable_diffusion_1(folder: Path) -> None:
    """As large as Stable Diffusion 1.5: 860 million weights in its UNet."""
    _kept(
        StableDiffusionPipeline(
            vae=_vae((128, 256, 512, 512)),
            text_encoder=CLIPTextModel(_text(768, 12, 12)),
            tokenizer=tokenizer(),
            unet=UNet2DConditionModel(sample_size=64, cross_attention_dim=768),
            scheduler=DDIMScheduler(**BETAS),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        ),
        folder,
    )


def stable_diffusion_xl(folder: Path) -> None:
    """As large as Stable Diffusion XL: 2.6 billion weights in its UNet."""
    down = ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D")
    unet = UNet2DConditionModel(
        sample_size=128,
        block_out_channels=(320, 640, 1280),
        down_block_types=down,
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 10),
        attention_head_dim=(5, 10, 20),
        cross_attention_dim=2048,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    )
    _kept(
        StableDiffusionXLPipeline(
            vae=_vae((128, 256, 512, 512)),
            text_encoder=CLIPTextModel(_text(768, 12, 12)),
            text_encoder_2=CLIPTextModelWithProjection(_text(1280, 32, 20)),
            tokenizer=tokenizer(),
            tokenizer_2=tokenizer(),
            unet=unet,
            scheduler=DDIMScheduler(**BETAS),
        ),
        folder,
    )


def small(folder: Path) -> None:
    """Small enough for a CPU, and large enough that sampling is what takes the time."""
    unet = UNet2DConditionModel(
        sample_size=32,
        block_out_channels=(64, 128),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=128,
        attention_head_dim=8,
    )
    _kept(
        StableDiffusionPipeline(
            vae=_vae((32, 32, 64, 64)),
            text_encoder=CLIPTextModel(_text(128, 2, 4)),
            tokenizer=tokenizer(),
            unet=unet,
            scheduler=DDIMScheduler(**BETAS),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        ),
        folder,
    )


KINDS: dict[str, Callable[[Path], None]] = {"small": small, "sd15": stable_diffusion_1, "sdxl": stable_diffusion_xl}


def _kept(pipe: Any, folder: Path) -> None:
    """In half precision where a GPU will open it, as models are passed on."""
    pipe.to(torch.float16 if torch.cuda.is_available() else torch.float32).save_pretrained(folder)


def _vae(channels: tuple[int, ...]) -> AutoencoderKL:
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        layers_per_block=2,
        sample_size=512,
    )


def _text(hidden: int, layers: int, heads: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=600,
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        projection_dim=hidden,
        max_position_embeddings=77,
        bos_token_id=512,
        eos_token_id=513,
        pad_token_id=513,
    )
