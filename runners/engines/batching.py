"""Joins render requests of a runner's steps, also of different jobs, into batches for its engine process.

    render ─▶ waiting ─▶ the oldest request and those with equal parameters, up to batch_max ─▶ process ─▶ images
                 ▲                                                                  │
                 └── each job in its own batch, if several jobs failed together ◀───┘

A batch thus holds the requests that arrived while the last one was rendered. A job that breaks the engine does not fail
other jobs.
"""

import asyncio
import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Protocol

import structlog
from msgspec.structs import replace

from orchestrator.events import DeviceMemory, ErrorCode, MemoryMeasure
from orchestrator.step_errors import StepFailure, Unexpected
from runners import metrics
from runners.engines.process import EngineProcess, EngineProcessDied
from runners.engines.protocol import Enlarge, FromProcess, ItemsFailed, MemoryExhausted, Pixels, Render, StepDone, Work

_MAX_GATHER_S = 0.1
"""How long a batch waits for announced requests: a few round trips to the database."""

_log = structlog.get_logger(__name__)


class AttemptListener(Protocol):
    """Receives what happens to an attempt's items. All requests of an attempt pass the same object."""

    def step_done(self, items: list[int], done: int, of: int) -> None:
        """`done` of `of` sampling steps are done."""

    def batch_rendered(self, items: list[int], size: int, memory: DeviceMemory | None) -> None:
        """The items were rendered in a batch of `size` images. `render` returns them afterwards."""

    def memory_exhausted(
        self, items: list[int], size: int, measure: MemoryMeasure | None, memory: DeviceMemory | None
    ) -> None:
        """Memory ran out with a batch of `size` images. measure: tried next; None if nothing is left."""

    def engine_lost(self, items: list[int], reason: str) -> None:
        """The engine process died, or hung and was killed."""


class EngineLostFailure(StepFailure):
    """The engine process died or hung while it rendered an attempt's items."""

    error_code = "provider_error"
    retryable = True


class RunnerStopping(StepFailure):
    """The runner is stopping and starts no new batch."""

    error_code = "infra_unavailable"
    retryable = True


class _ItemFailed(StepFailure):
    """The engine reported that an item failed."""

    error_code: ErrorCode  # type: ignore[misc]  # of the instance: the engine sends it with each failure
    retryable: bool  # type: ignore[misc]

    def __init__(self, failed: ItemsFailed) -> None:
        super().__init__(failed.message)
        self.error_code = failed.error_code
        self.retryable = failed.retryable


class _ItemRequest:
    """A request for one item. work: for that one image. isolated: it shares no batch with other attempts."""

    def __init__(self, item_index: int, work: Work, listener: AttemptListener) -> None:
        self.item_index = item_index
        self.work = work
        self.listener = listener
        self.isolated = False
        self.image: asyncio.Future[Pixels] = asyncio.get_running_loop().create_future()


class BatchScheduler:
    """Schedules the requests of a runner's steps on its engine process. batch_max: most images in a batch."""

    def __init__(self, process: EngineProcess, *, batch_max: int) -> None:
        self._process = process
        self.batch_max = batch_max
        self._waiting: list[_ItemRequest] = []
        self._running: list[_ItemRequest] = []
        self._announced: set[object] = set()
        self._changed = asyncio.Event()
        self._stopping = False
        self._task: asyncio.Task[None] | None = None

    def announce_request(self) -> Callable[[], None]:
        """Announce a request of a step that is starting: the next batch waits up to `_MAX_GATHER_S` seconds for it.

        Call the returned function after the request, or if there will be none. A second call does nothing.
        """
        announcement = object()
        self._announced.add(announcement)

        def withdraw() -> None:
            self._announced.discard(announcement)
            self._changed.set()

        return withdraw

    async def render(self, work: Work, item_index: int, listener: AttemptListener) -> Pixels:
        """Render or enlarge an item, possibly in a batch with others. work: for that image. Raises `StepFailure`."""
        if self._stopping:
            raise RunnerStopping("the runner stops")
        request = _ItemRequest(item_index, work, listener)
        self._waiting.append(request)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._render_all(), name="batches")
        try:
            return await request.image
        finally:
            if request in self._waiting:
                self._waiting.remove(request)
            elif request in self._running and request.image.cancelled():
                self._process.cancel([self._running.index(request)])

    def stop_accepting(self) -> None:
        """Fail waiting and future requests with `RunnerStopping`. The running batch is finished."""
        self._stopping = True
        for request in self._waiting:
            _fail_request(request, RunnerStopping("the runner stops"))
        self._waiting.clear()

    async def stop(self) -> None:
        """Stop the engine process. Open requests raise `CancelledError`."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._process.stop()

    async def _render_all(self) -> None:
        """Render one batch after another, until no request waits."""
        while self._waiting:
            await self._wait_for_announced()
            batch = self._take_batch()
            if not batch:
                continue
            self._running = batch
            try:
                await self._render_batch(batch)
                for request in batch:
                    if request not in self._waiting:
                        _fail_request(request, Unexpected(RuntimeError()))  # an engine that leaves items out has a bug
            except asyncio.CancelledError:
                for request in batch:
                    request.image.cancel()
                raise
            except Exception as error:  # noqa: BLE001  # every waiting request must get a result
                _log.exception("batch failed unexpectedly")
                for request in batch:
                    _fail_request(request, Unexpected(error))
            finally:
                self._running = []

    async def _wait_for_announced(self) -> None:
        """Wait for announced requests, up to `_MAX_GATHER_S` seconds."""
        try:
            async with asyncio.timeout(_MAX_GATHER_S):
                while self._announced:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            return

    def _take_batch(self) -> list[_ItemRequest]:
        if not self._waiting:
            return []
        first = self._waiting[0]
        batch = [first]
        batch += itertools.islice(filter(partial(_can_share_batch, first), self._waiting[1:]), self.batch_max - 1)
        for request in batch:
            self._waiting.remove(request)
        return batch

    async def _render_batch(self, batch: list[_ItemRequest]) -> None:
        rendered: list[Pixels] = []
        try:
            try:
                await self._process.run(_merge_work(batch), partial(self._on_message, batch, rendered))
            finally:
                _deliver_images(batch, rendered)
        except EngineProcessDied as error:
            self._on_engine_lost(batch, str(error))

    def _on_engine_lost(self, batch: Sequence[_ItemRequest], reason: str) -> None:
        """Retry the missing items in one batch per job. If the batch held one job only, its items fail."""
        metrics.ENGINE_LOST.inc()
        _log.warning("engine process lost", reason=reason, images=len(batch))
        left = [
            index for index, request in enumerate(batch) if not request.image.done() and request not in self._waiting
        ]
        for listener, items in _group_by_listener(batch, left):
            listener.engine_lost(items, reason)
        error = EngineLostFailure(f"the engine was lost while it rendered: {reason}")
        if len({id(request.listener) for request in batch}) > 1:
            self._retry_isolated([batch[index] for index in left])
        else:
            for request in batch:
                _fail_request(request, error)

    def _on_message(self, batch: Sequence[_ItemRequest], rendered: list[Pixels], message: FromProcess) -> None:
        """Handle a message of the process about a batch. rendered: images that are not yet delivered."""
        match message:
            case StepDone():
                for listener, items in _group_by_listener(batch, message.items):
                    listener.step_done(items, message.done, message.of)
            case MemoryExhausted():
                metrics.ENGINE_OOM.inc()
                for listener, items in _group_by_listener(batch, message.items):
                    listener.memory_exhausted(items, message.size, message.next, message.memory)
            case Pixels():
                if rendered and message.rendering.batch_index <= rendered[-1].rendering.batch_index:
                    _deliver_images(batch, rendered)  # of the previous part, whose last image failed
                rendered.append(message)
                if message.rendering.batch_index == message.rendering.batch_size - 1:
                    _deliver_images(batch, rendered)
            case ItemsFailed():
                self._fail_or_isolate([batch[item] for item in message.items if not batch[item].image.done()], message)

    def _fail_or_isolate(self, broken: Sequence[_ItemRequest], message: ItemsFailed) -> None:
        """Fail items of one attempt; retry items of several attempts in separate batches."""
        if len({id(request.listener) for request in broken}) > 1:
            self._retry_isolated(broken)
            return
        for request in broken:
            _fail_request(request, _ItemFailed(message))

    def _retry_isolated(self, requests: Sequence[_ItemRequest]) -> None:
        """Retry each attempt's items in a batch of their own, to find the attempt that causes the failure."""
        for request in requests:
            request.isolated = True
            if self._stopping:
                _fail_request(request, RunnerStopping("the runner stops"))
        if not self._stopping:
            self._waiting[:0] = requests


def _can_share_batch(first: _ItemRequest, other: _ItemRequest) -> bool:
    """Whether two requests may be rendered in one batch."""
    if not (isinstance(first.work, Render) and isinstance(other.work, Render)):
        return False
    if first.listener is not other.listener and (first.isolated or other.isolated):
        return False
    if first.work.original_batch_size is not None or other.work.original_batch_size is not None:
        return False
    return first.work.sampling == other.work.sampling


def _merge_work(batch: Sequence[_ItemRequest]) -> Work:
    first = batch[0].work
    if isinstance(first, Enlarge):
        return first
    specs = [spec for request in batch if isinstance(request.work, Render) for spec in request.work.specs]
    return replace(first, specs=specs)


def _group_by_listener(
    batch: Sequence[_ItemRequest], indices: Iterable[int]
) -> Iterable[tuple[AttemptListener, list[int]]]:
    """The items at these indices of a batch, grouped by the listeners of their attempts."""
    listeners: dict[int, AttemptListener] = {}
    items: defaultdict[int, list[int]] = defaultdict(list)
    for index in indices:
        listener = batch[index].listener
        listeners[id(listener)] = listener
        items[id(listener)].append(batch[index].item_index)
    return [(listener, items[key]) for key, listener in listeners.items()]


def _deliver_images(batch: Sequence[_ItemRequest], rendered: list[Pixels]) -> None:
    """Notify the listeners, then deliver the images: the event of the batch must precede the artifacts in the log."""
    if not rendered:
        return
    [*_, last] = rendered
    metrics.BATCH_IMAGES.observe(last.rendering.batch_size)
    if last.memory is not None:
        metrics.ENGINE_MEMORY.labels("before").set(last.memory.before)
        metrics.ENGINE_MEMORY.labels("peak").set(last.memory.peak)
        metrics.ENGINE_MEMORY.labels("after").set(last.memory.after)
    for listener, items in _group_by_listener(batch, [pixels.item for pixels in rendered]):
        listener.batch_rendered(items, last.rendering.batch_size, last.memory)
    for pixels in rendered:
        if not batch[pixels.item].image.done():
            batch[pixels.item].image.set_result(pixels)
    rendered.clear()


def _fail_request(request: _ItemRequest, error: StepFailure) -> None:
    if not request.image.done():
        request.image.set_exception(error)
