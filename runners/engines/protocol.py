"""Messages between a runner and its engine process.

    runner ──▶ process   Render, Enlarge      work; at most one of them is under way
                         Cancel               some of its items are no longer needed
    process ──▶ runner   Ready                once, when it has started
                         ModelOpening         a model is being opened
                         StepDone             a denoising step or a tile is done
                         MemoryExhausted      memory ran out; the measure that is tried next
                         Pixels               an image
                         ItemsFailed          some items failed
                         Done                 the work has ended; each item has an image or has failed

Each message is MessagePack, with a length prefix of four bytes, big-endian. Pixels follow their message as they are:
encoding and decoding 200 MB as MessagePack would hold the runner's event loop.
"""

from typing import Protocol
from uuid import UUID

import msgspec
from msgspec.structs import replace
from PIL import Image

from orchestrator.events import DeviceMemory, ErrorCode, MemoryMeasure, ModelKind, Rendering
from orchestrator.parameters import SamplingParams
from runners.faults import InjectedFault

LENGTH_BYTES = 4


class ModelRef(msgspec.Struct, frozen=True, kw_only=True):
    """A model to open. path: a folder, a file, or the id of a hub repository.

    sha256: of the list of its files' hashes; None for an unregistered model. weights_sha256: of its weights file, if
    there is exactly one. trusted: files that may run code when they are opened (pickles) may be opened.
    """

    kind: ModelKind
    path: str
    model_id: UUID | None = None
    sha256: str | None = None
    weights_sha256: str | None = None
    trusted: bool = False


class Sampling(SamplingParams, frozen=True, kw_only=True):
    """The parameters that all images of a batch share. width, height: in pixels. scheduler: None: the model's own."""

    model: ModelRef


class ImageSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One image of a batch. injected: the fault to inject into the engine at this image, for tests."""

    prompt: str
    negative_prompt: str | None
    seed: int
    injected: InjectedFault | None = None


class Render(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Render a batch of images. Messages about it number the items by their index in `specs`.

    original_batch_size, original_batch_index, measures: reproduce images of an earlier batch: its size, the index of
    the first spec in it, and the measures that were applied. None: as many images at once as fit.
    """

    sampling: Sampling
    specs: list[ImageSpec]
    original_batch_size: int | None = None
    original_batch_index: int = 0
    measures: list[MemoryMeasure] = []


class Enlarge(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Enlarge an image, which is item 0. pixels: rows of RGB, one byte per channel.

    strict: only a model of exactly that scale. spec: prompt and seed, for upscalers that use them. tile: side of a tile
    in pixels, to reproduce an earlier image; None: the model's own.
    """

    model: ModelRef
    scale: int
    strict: bool
    width: int
    height: int
    pixels: bytes
    spec: ImageSpec
    tile: int | None = None


class Cancel(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Skip some items. work: its number, counted from 1. Work whose items are all cancelled ends within a step."""

    work: int
    items: list[int]


class Ready(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The process has started."""

    versions: dict[str, str]
    device: str


class StepDone(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """`done` of `of` steps or tiles of some items are done."""

    items: list[int]
    done: int
    of: int


class MemoryExhausted(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Memory ran out with a batch of `size` images. next: the measure that is tried; None if nothing is left."""

    items: list[int]
    size: int
    next: MemoryMeasure | None
    memory: DeviceMemory | None


class Pixels(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """An image: rows of RGB, one byte per channel. memory: use of its batch."""

    item: int
    width: int
    height: int
    pixels: bytes
    rendering: Rendering
    memory: DeviceMemory | None

    @classmethod
    def from_image(cls, item: int, image: Image.Image, rendering: Rendering, memory: DeviceMemory | None) -> "Pixels":
        """The message for an image, converted to RGB."""
        opaque = image if image.mode == "RGB" else image.convert("RGB")
        return cls(
            item=item,
            width=opaque.width,
            height=opaque.height,
            pixels=opaque.tobytes(),
            rendering=rendering,
            memory=memory,
        )

    def image(self) -> Image.Image:
        """The pixels as an image."""
        return Image.frombytes("RGB", (self.width, self.height), self.pixels)


class ItemsFailed(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Some items failed, and why."""

    items: list[int]
    error_code: ErrorCode
    message: str
    retryable: bool


class ModelOpening(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A model is being opened, or fetched."""


class Done(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The work has ended. restart_needed: the process may be damaged, as a GPU context is after some errors."""

    restart_needed: bool = False


Work = Render | Enlarge
ToProcess = Work | Cancel
FromProcess = Ready | ModelOpening | StepDone | MemoryExhausted | Pixels | ItemsFailed | Done


def encode_frames(message: msgspec.Struct) -> list[bytes]:
    """A message as it is sent: with its length prefix, then its pixels."""
    pixels = message.pixels if isinstance(message, Enlarge | Pixels) else b""
    body = msgspec.msgpack.encode(replace(message, pixels=b"") if pixels else message)
    return [len(body).to_bytes(LENGTH_BYTES, "big") + body, pixels]


def pixels_size(message: msgspec.Struct) -> int:
    """How many bytes of pixels follow a message, which is received without them."""
    return message.width * message.height * 3 if isinstance(message, Enlarge | Pixels) else 0


class RenderCancelled(Exception):
    """All items of the current work were cancelled."""


class RenderListener(Protocol):
    """Receives the progress and the images of an engine, within its process."""

    def model_still_opening(self) -> None:
        """A model is still being opened."""

    def step_done(self, items: list[int], done: int, of: int) -> None:
        """A step is done. Raises `RenderCancelled` if all of the items were cancelled."""

    def memory_exhausted(
        self, items: list[int], size: int, measure: MemoryMeasure | None, memory: DeviceMemory | None
    ) -> None:
        """Memory ran out with a batch of `size` images. measure: tried next; None if nothing is left."""

    def image_rendered(self, item: int, image: Image.Image, rendering: Rendering, memory: DeviceMemory | None) -> None:
        """An image is rendered."""

    def inject_fault(self, spec: ImageSpec) -> None:
        """Cause the fault that a test asks for: a MemoryError, the death of the process, or a hang."""
