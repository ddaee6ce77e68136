"""Renders one item of a step to the bytes of its file: in this process, or in the engine process."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from functools import partial
from typing import TypeVar

import msgspec
from PIL import Image

from artifacts.encoding import decode, encode, size_of
from artifacts.errors import InvalidSource, ObjectChanged
from artifacts.lineage import embed, lineage_of, read_lineage
from orchestrator.events.steps import Rendering, StepName
from orchestrator.plan import item_seed
from orchestrator.state import JobState, StepState
from runners.engines.batching import AttemptListener, BatchScheduler
from runners.engines.protocol import Enlarge, ImageSpec, ModelRef, Pixels, Render, Sampling
from runners.fake_renderer import Renderer
from runners.faults import FaultPlan, InjectedFault
from runners.selection import NO_MODELS, ModelFiles, Selected, Selection

T = TypeVar("T")


class RenderedImage(msgspec.Struct, frozen=True):
    """An item's file. size: width and height in pixels; rendering: how it was made, None without a model."""

    body: bytes
    size: tuple[int, int]
    rendering: Rendering | None = None


class ItemRenderer:
    """Renders the items of a runner's steps.

    renderer: for what needs no model. batches: for what needs one. selection: says which it is.
    max_pixels: of an image that is read back, as a limit on decompression bombs.
    """

    def __init__(
        self,
        renderer: Renderer,
        executor: Executor,
        selection: Selection = NO_MODELS,
        batches: BatchScheduler | None = None,
        *,
        faults: FaultPlan | None = None,
        max_pixels: int = 2**26,
    ) -> None:
        self._renderer = renderer
        self._executor = executor
        self._selection = selection
        self._batches = batches
        self._faults = faults or FaultPlan()
        self._max_pixels = max_pixels
        self._files = ModelFiles()

    def announce_request(self) -> Callable[[], None]:
        """Announce a step that is starting: a batch waits briefly for its requests. Call the result afterwards."""
        return (lambda: None) if self._batches is None else self._batches.announce_request()

    async def select(self, job: JobState, step: StepState) -> Selected:
        """What is to render a step. May raise `DatabaseUnavailable`."""
        return await self._selection.of(job, step)

    def at_once(self, selected: Selected) -> int:
        """How many items of a step are worth asking for at once: while one batch is rendered the next one gathers.

        Pictures to enlarge come one by one, and are large: the next one is read meanwhile.
        """
        if selected.model is None or self._batches is None:
            return 1
        return 2 * self._batches.batch_max if selected.model.kind == "generator" else 2

    async def check(self, selected: Selected) -> None:
        """Raise `StepError` unless what was selected can be used."""
        if selected.problem is not None:
            raise selected.problem
        if selected.view is not None:
            await self._in_thread(partial(self._files.check, selected.view))

    async def generate(
        self, selected: Selected, job: JobState, item_index: int, report: AttemptListener
    ) -> RenderedImage:
        """Render an item of a generate step. Raises `StepError`."""
        if selected.model is None or self._batches is None:
            body = await self._in_thread(partial(self._renderer.generate, job, item_index))
            return self._signed(job, "generate", item_index, body, None)
        injected = self._faults.check("generate", item_index, job.job_id)
        work = render(selected.model, job, item_index, injected)
        return await self._encoded(job, "generate", item_index, await self._batches.render(work, item_index, report))

    async def upscale(
        self, selected: Selected, job: JobState, item_index: int, source: bytes, report: AttemptListener
    ) -> RenderedImage:
        """Upscale an item that generate wrote. Raises `StepError`."""
        if selected.model is None or self._batches is None:
            body = await self._in_thread(partial(self._renderer.upscale, job, item_index, source))
            return self._signed(job, "upscale", item_index, body, None)
        injected = self._faults.check("upscale", item_index, job.job_id)
        image = partial(decode, source, self._max_pixels)
        model = selected.model
        work = await self._in_thread(lambda: enlarge(model, job, item_index, image(), injected))
        return await self._encoded(job, "upscale", item_index, await self._batches.render(work, item_index, report))

    async def adopted(
        self, job: JobState, step: StepName, item_index: int, body: bytes, size: tuple[int, int]
    ) -> Rendering | None:
        """How an image came about that an earlier attempt has stored, in another batch perhaps; None if it isn't told.

        Raises `ObjectChanged` for one that no attempt at this item can have made.
        """
        return await self._in_thread(partial(_adopted, job, step, item_index, body, size))

    def withdraw(self) -> None:
        """The runner stops: what is being rendered is finished, what waits fails, and is handed back."""
        if self._batches is not None:
            self._batches.stop_accepting()

    async def stop(self) -> None:
        """End the engine process, if there is one."""
        if self._batches is not None:
            await self._batches.stop()

    async def _encoded(self, job: JobState, step: StepName, item_index: int, pixels: Pixels) -> RenderedImage:
        body = await self._in_thread(lambda: encode(pixels.image(), job.generate.format))
        return self._signed(job, step, item_index, body, pixels.rendering)

    def _signed(
        self, job: JobState, step: StepName, item_index: int, body: bytes, rendering: Rendering | None
    ) -> RenderedImage:
        """A file that says where it came from, unless that is not wanted."""
        if job.generate.embed_metadata:
            body = embed(body, lineage_of(job, step, item_index, rendering))
        return RenderedImage(body, size_of(body), rendering)

    async def _in_thread(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, call)


def _adopted(job: JobState, step: StepName, item_index: int, body: bytes, size: tuple[int, int]) -> Rendering | None:
    where = f"the object that lies in place of item {item_index} of {step}"
    try:
        image = decode(body, size[0] * size[1])
        found = read_lineage(body)
    except InvalidSource as error:
        raise ObjectChanged(f"{where} was written by no attempt at it: {error}; remove it") from error
    if image.size != size:
        raise ObjectChanged(f"{where} is {image.width}x{image.height} instead of {size[0]}x{size[1]}; remove it")
    if found is None and not job.generate.embed_metadata:
        return None
    ours = (job.job_id, item_index, step == "generate")
    if found is None or (found.job_id, found.item_index, found.upscale is None) != ours:
        raise ObjectChanged(f"{where} is another image, by what its file says; remove it")
    return found.generate.rendering if found.upscale is None else found.upscale.rendering


def render(model: ModelRef, job: JobState, item_index: int, injected: InjectedFault | None = None) -> Render:
    """An item of a generate step, as the engine process is asked for it."""
    wanted = job.generate
    sampling = Sampling(
        model=model,
        width=wanted.width,
        height=wanted.height,
        steps=wanted.steps,
        guidance=wanted.guidance,
        scheduler=wanted.scheduler,
    )
    return Render(sampling=sampling, specs=[_image_spec(job, item_index, injected)])


def enlarge(
    model: ModelRef, job: JobState, item_index: int, image: Image.Image, injected: InjectedFault | None = None
) -> Enlarge:
    """An item of an upscale step, likewise. image: what generate wrote."""
    if job.upscale is None:
        raise RuntimeError(f"job {job.job_id} has a step upscale, but no parameters for it")
    opaque = image.convert("RGB")
    return Enlarge(
        model=model,
        scale=job.upscale.scale,
        strict=job.upscale.strict_scale,
        width=opaque.width,
        height=opaque.height,
        pixels=opaque.tobytes(),
        spec=_image_spec(job, item_index, injected),
    )


def _image_spec(job: JobState, item_index: int, injected: InjectedFault | None) -> ImageSpec:
    return ImageSpec(
        prompt=job.private.prompt or "",
        negative_prompt=job.private.negative_prompt,
        seed=item_seed(job.generate.seed, job.generate.count, item_index),
        injected=injected,
    )
