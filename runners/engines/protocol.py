"""Messages between a runner and its engine process.

    runner ──▶ process   Render, Enlarge      work; at most one of them is under way
                         Cancel               some of its items are no longer needed
    process ──▶ runner   Ready                once, when it has started
                         Opening              a model is being opened
                         Stepped              a denoising step or a tile is done
                         MemoryExhausted      memory ran out; the measure that is tried next
                         Pixels               an image
                         ItemsFailed          some items failed
                         Done                 the work has ended; each item was answered or failed

Each message is MessagePack, behind its length as four bytes, the most significant first.
"""

from typing import Protocol
from uuid import UUID

import msgspec
from PIL import Image

from orchestrator.events.models import ModelKind
from orchestrator.events.steps import ErrorCode, Measure, Memory, Rendering
from orchestrator.parameters import SamplingParams
from runners.faults import InjectedFault


class ModelRef(msgspec.Struct, frozen=True, kw_only=True):
    """A model to open. path: a folder, a file, or the id of a repository in a hub.

    sha256: of the list of its files' hashes, None for one that is not registered. weights_sha256: of its file of
    weights, where there is one alone. trusted: files that may run code when they are opened (pickles) may be opened,
    too.
    """

    kind: ModelKind
    path: str
    model_id: UUID | None = None
    sha256: str | None = None
    weights_sha256: str | None = None
    trusted: bool = False


class Sampling(SamplingParams, frozen=True, kw_only=True):
    """What all images of a batch have in common. Sizes in pixels; scheduler: the contract's name; None: the model's."""

    model: ModelRef


class ImageSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One image of a batch. injected: the fault to inject into the engine at this image, for tests."""

    prompt: str
    negative_prompt: str | None
    seed: int
    injected: InjectedFault | None = None


class Render(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Render a batch of images; the items' numbers in all that is said of them are their indices in `specs`.

    as_batch_of, from_index, measures: render exactly so many at once, these from the index on, with these measures
    taken, to make the pixels of an earlier batch again; None: as many at once as fit.
    """

    sampling: Sampling
    specs: list[ImageSpec]
    as_batch_of: int | None = None
    from_index: int = 0
    measures: list[Measure] = []


class Enlarge(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Enlarge an image, which is item 0. pixels: rows of RGB, a byte each.

    strict: by a model of exactly that scale. spec: prompt and seed, for upscalers that use them. tile: pixels of a
    side to take at once, to make the pixels of an earlier one again; None: as the model likes.
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
    """Some items of a piece of work, counted from 1, are wanted no longer. When none is, it ends within a step."""

    work: int
    items: list[int]


class Ready(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The process has started."""

    versions: dict[str, str]
    device: str


class Stepped(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """So many steps or tiles of some items are done. of: in all."""

    items: list[int]
    done: int
    of: int


class MemoryExhausted(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Memory ran out with a batch of `size`. next: what is tried instead; None: nothing is left."""

    items: list[int]
    size: int
    next: Measure | None
    memory: Memory | None


class Pixels(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A picture: rows of RGB, a byte each. memory: of the batch that it was rendered in."""

    item: int
    width: int
    height: int
    pixels: bytes
    rendering: Rendering
    memory: Memory | None

    @classmethod
    def of(cls, item: int, image: Image.Image, rendering: Rendering, memory: Memory | None) -> "Pixels":
        """A picture's pixels, whatever its mode."""
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
        """The picture."""
        return Image.frombytes("RGB", (self.width, self.height), self.pixels)


class ItemsFailed(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Some items failed, and why."""

    items: list[int]
    error_code: ErrorCode
    message: str
    retryable: bool


class Opening(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A model is being opened, or fetched."""


class Done(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The work has ended. unfit: the process may be damaged (a GPU's context is, by some errors): start another."""

    unfit: bool = False


Work = Render | Enlarge
ToProcess = Work | Cancel
FromProcess = Ready | Opening | Stepped | MemoryExhausted | Pixels | ItemsFailed | Done


class Abandoned(Exception):
    """Nobody wants what is under way any more."""


class Watch(Protocol):
    """Whom an engine tells how it gets on, within its process."""

    def opening(self) -> None:
        """Tell that a model is still being opened."""

    def stepped(self, items: list[int], done: int, of: int) -> None:
        """Tell of a step; raises `Abandoned` when none of the items is wanted any more."""

    def short(self, items: list[int], size: int, measure: Measure | None, memory: Memory | None) -> None:
        """Tell that memory ran out, and what is tried next."""

    def pixels(self, item: int, image: Image.Image, rendering: Rendering, memory: Memory | None) -> None:
        """Hand a picture over, as soon as it is there."""

    def inject(self, spec: ImageSpec) -> None:
        """Let happen what a test asked for: a MemoryError, the process's end, or a standstill."""
