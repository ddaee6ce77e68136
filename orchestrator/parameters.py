"""What may be asked of generate and upscale, and what is recorded of it. Pure.

`Generate` and `Upscale` are what a request may hold: fields, bounds and defaults. Recorded parameters have the same
fields without bounds and defaults: what an earlier release accepted is read, whatever this one accepts.
"""

from typing import Annotated, Literal
from uuid import UUID

import msgspec
from msgspec import Meta

ImageFormat = Literal["png", "jpg"]
SchedulerName = Literal["dpmpp_2m_karras", "unipc", "euler", "ddim"]
UpscaleImpl = Literal["auto", "image", "gan", "diffusion"]
EngineName = Literal["sdxl", "flux-srpo"]
ScaleFactor = Literal[2, 4]
SidePixels = Annotated[int, Meta(ge=16, le=4096)]
LARGEST_SEED = 2**53 - 1


class Generate(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Make images from a prompt."""

    type: Literal["generate"]
    prompt: Annotated[str, Meta(min_length=1, max_length=4096)]
    negative_prompt: Annotated[str, Meta(max_length=4096)] | None = None
    width: SidePixels = 1024
    height: SidePixels = 1024
    steps: Annotated[int, Meta(ge=1, le=200)] = 30
    guidance: Annotated[float, Meta(ge=0, le=50)] = 7.0
    scheduler: SchedulerName | None = None
    format: ImageFormat = "png"
    embed_metadata: bool = True
    seed: Annotated[int, Meta(ge=0, le=LARGEST_SEED)] | None = None
    count: Annotated[int, Meta(ge=1, le=100)] = 1
    model_id: UUID | None = None
    provider: str | None = None
    engine: EngineName | None = None


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True):
    """Those of generate's parameters that all images of a batch have in common."""

    width: int
    height: int
    steps: int
    guidance: float
    scheduler: str | None


class GenerateParams(SamplingParams, frozen=True, kw_only=True):
    """What was asked of generate, defaults filled and the base seed drawn; the prompts are `PersonalText`."""

    format: ImageFormat
    embed_metadata: bool
    seed: int
    count: int
    model_id: UUID | None
    provider: str | None
    engine: str | None


class Upscale(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Enlarge every generated image."""

    scale: ScaleFactor = 2
    impl: UpscaleImpl = "auto"
    strict_scale: bool = False


class UpscaleParams(msgspec.Struct, frozen=True, kw_only=True):
    """The upscale that was asked for."""

    scale: ScaleFactor
    impl: UpscaleImpl
    strict_scale: bool


PARAMETERS = tuple(
    name for name in Generate.__struct_fields__ if name not in {"type", "model_id", "provider", "engine"}
)
"""The fields that say what a model is to do, rather than which one."""
