"""Renders one item of a step to the bytes of its file: in this process, or in the engine process."""

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import Executor
from functools import partial
from typing import TypeVar

import msgspec

from artifacts.encoding import decode, encode, image_size
from artifacts.errors import InvalidSource, ObjectChanged
from artifacts.lineage import embed_lineage, lineage_of, read_lineage
from orchestrator.events import Rendering, StepName
from orchestrator.state import JobState, StepState
from runners.engines.batching import AttemptListener, BatchScheduler
from runners.engines.protocol import ModelRef, Pixels, Work
from runners.fake_renderer import FakeRenderer
from runners.selection import NO_MODELS, ModelChoices, ModelFilesChecker, SelectedEngine
from runners.worker import worker_for

T = TypeVar("T")

_PLACE_TIMEOUT_S = 10.0
"""After how long a call runs beside those that occupy all places: they may hang."""


class RenderedImage(msgspec.Struct, frozen=True):
    """An item's file. size: width and height in pixels; rendering: how it was made, None without a model."""

    file_bytes: bytes
    size: tuple[int, int]
    rendering: Rendering | None = None


class ItemRenderer:
    """Renders the items of a runner's steps.

    renderer: for what needs no model. batches: for what needs one. selection: says which it is.
    """

    def __init__(
        self,
        renderer: FakeRenderer,
        executor: Executor,
        selection: ModelChoices = NO_MODELS,
        batches: BatchScheduler | None = None,
    ) -> None:
        self._renderer = renderer
        self._executor = executor
        self._selection = selection
        self._batches = batches
        self._files = ModelFilesChecker()
        self._thread_places = asyncio.Semaphore((os.cpu_count() or 1) + 1)

    def announce_request(self) -> Callable[[], None]:
        """Announce a step that is starting: a batch waits briefly for its requests. Call the result afterwards."""
        return (lambda: None) if self._batches is None else self._batches.announce_request()

    async def select(self, job: JobState, step: StepState) -> SelectedEngine:
        """What is to render a step. May raise `DatabaseUnavailable`."""
        return await worker_for(step.name).select(self._selection, job.parameters[step.name])

    def max_items_at_once(self, selected: SelectedEngine) -> int:
        """How many items of a step are worth asking for at once: while one batch is rendered the next one gathers.

        Pictures to enlarge come one by one, and are large: the next one is read meanwhile.
        """
        if selected.model is None or self._batches is None:
            return 1
        return 2 * self._batches.batch_max if selected.model.kind == "generator" else 2

    async def check_selected(self, selected: SelectedEngine) -> None:
        """Raise `StepFailure` unless what was selected can be used."""
        if selected.problem is not None:
            raise selected.problem
        if selected.view is not None:
            await self._run_in_thread(partial(self._files.check, selected.view))

    async def render(
        self,
        selected: SelectedEngine,
        job: JobState,
        step: StepName,
        index: int,
        source: bytes | None,
        listener: AttemptListener,
    ) -> RenderedImage:
        """Render an item of a step. source: the file of the step before. Raises `StepFailure`."""
        if selected.model is None or self._batches is None:
            return await self._run_in_thread(partial(self._render_without_model, job, step, index, source))
        request = partial(self._build_request, selected.model, job, step, index, source)
        # Without a source there is nothing to wait for: the request must be made before the batch stops waiting.
        work = request() if source is None else await self._run_in_thread(request)
        pixels = await self._batches.render(work, index, listener)
        return await self._run_in_thread(partial(_encode_pixels, job, step, index, pixels))

    def _render_without_model(self, job: JobState, step: StepName, index: int, source: bytes | None) -> RenderedImage:
        return _embed_lineage(job, step, index, self._renderer.render(job, step, index, source), None)

    def _build_request(self, model: ModelRef, job: JobState, step: StepName, index: int, source: bytes | None) -> Work:
        return worker_for(step).build_request(model, self._renderer.build_item(job, step, index, source))

    async def read_stored_rendering(
        self, job: JobState, step: StepName, item_index: int, body: bytes, size: tuple[int, int]
    ) -> Rendering | None:
        """How an image came about that an earlier attempt has stored, in another batch perhaps; None if it isn't told.

        Raises `ObjectChanged` for one that no attempt at this item can have made.
        """
        return await self._run_in_thread(partial(_read_stored_rendering, job, step, item_index, body, size))

    def stop_accepting(self) -> None:
        """The runner stops: what is being rendered is finished, what waits fails, and is handed back."""
        if self._batches is not None:
            self._batches.stop_accepting()

    async def stop_engine(self) -> None:
        """End the engine process, if there is one."""
        if self._batches is not None:
            await self._batches.stop()

    async def _run_in_thread(self, call: Callable[[], T]) -> T:
        """Run a call in a thread: about as many at once as there are cores, whatever the slots."""
        try:
            await asyncio.wait_for(self._thread_places.acquire(), _PLACE_TIMEOUT_S)
        except TimeoutError:
            return await asyncio.get_running_loop().run_in_executor(self._executor, call)
        try:
            return await asyncio.get_running_loop().run_in_executor(self._executor, call)
        finally:
            self._thread_places.release()


def _encode_pixels(job: JobState, step: StepName, index: int, pixels: Pixels) -> RenderedImage:
    body = encode(pixels.image(), job.generate.format)
    return _embed_lineage(job, step, index, body, pixels.rendering)


def _embed_lineage(
    job: JobState, step: StepName, index: int, body: bytes, rendering: Rendering | None
) -> RenderedImage:
    """A file that says where it came from, unless that is not wanted."""
    if job.generate.embed_metadata:
        body = embed_lineage(body, lineage_of(job, step, index, rendering))
    return RenderedImage(body, image_size(body), rendering)


def _read_stored_rendering(
    job: JobState, step: StepName, item_index: int, body: bytes, size: tuple[int, int]
) -> Rendering | None:
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
    if found is None or (found.job_id, found.item_index, found.last[0]) != (job.job_id, item_index, step):
        raise ObjectChanged(f"{where} is another image, by what its file says; remove it")
    return found.last[1]
