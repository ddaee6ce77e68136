"""Real pipelines with tiny, seeded weights: of no use to the eye, and as good as any for the rest."""

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMScheduler,
    FlowMatchEulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionUpscalePipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

_WIDTH = 16


def stable_diffusion(folder: Path, seed: int = 0, *, flow: bool = False) -> Path:
    """A `StableDiffusionPipeline` in a folder. flow: with a scheduler for flow matching, as newer families have."""
    own = PNDMScheduler(**BETAS, skip_prk_steps=True, steps_offset=1)
    torch.manual_seed(seed)
    StableDiffusionPipeline(
        vae=_vae(),
        text_encoder=CLIPTextModel(_text()),
        tokenizer=tokenizer(),
        unet=_unet(4, cross_attention_dim=_WIDTH),
        scheduler=FlowMatchEulerDiscreteScheduler() if flow else own,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


def stable_diffusion_xl(folder: Path, seed: int = 0) -> Path:
    """A `StableDiffusionXLPipeline` in a folder."""
    torch.manual_seed(seed)
    words = tokenizer()
    StableDiffusionXLPipeline(
        vae=_vae(),
        text_encoder=CLIPTextModel(_text()),
        text_encoder_2=CLIPTextModelWithProjection(_text()),
        tokenizer=words,
        tokenizer_2=words,
        unet=_unet(
            4,
            cross_attention_dim=2 * _WIDTH,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + _WIDTH,
        ),
        scheduler=DDIMScheduler(**BETAS, set_alpha_to_one=False, steps_offset=1),
    ).save_pretrained(folder)
    return folder


def diffusion_upscaler(folder: Path, seed: int = 0) -> Path:
    """A `StableDiffusionUpscalePipeline`, which enlarges by 4, in a folder."""
    torch.manual_seed(seed)
    StableDiffusionUpscalePipeline(
        vae=_vae(blocks=3),
        text_encoder=CLIPTextModel(_text()),
        tokenizer=tokenizer(),
        unet=_unet(7, out_channels=4, cross_attention_dim=_WIDTH, num_class_embeds=1000),
        low_res_scheduler=DDPMScheduler(**BETAS),
        scheduler=DDIMScheduler(**BETAS),
        max_noise_level=350,
    ).save_pretrained(folder)
    return folder


BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def _unet(in_channels: int, *, out_channels: int = 4, **more: object) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=in_channels,
        out_channels=out_channels,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4,
        norm_num_groups=4,
        **more,
    )


def _vae(blocks: int = 4) -> AutoencoderKL:
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=(8,) * blocks,
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=64,
        scaling_factor=0.08333 if blocks == 3 else 0.18215,
    )


def _text() -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=600,
        hidden_size=_WIDTH,
        intermediate_size=2 * _WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        projection_dim=_WIDTH,
        max_position_embeddings=77,
        bos_token_id=512,
        eos_token_id=513,
        pad_token_id=513,
    )


def tokenizer() -> CLIPTokenizer:
    """CLIP's tokenizer over single bytes: its alphabet, each letter also as the end of a word, and no merges."""
    alphabet = sorted(ByteLevel.alphabet())
    letters = [*alphabet, *(f"{letter}</w>" for letter in alphabet), "<|startoftext|>", "<|endoftext|>"]
    vocab = {letter: number for number, letter in enumerate(letters)}
    return CLIPTokenizer(vocab=vocab, merges=[], model_max_length=77)
