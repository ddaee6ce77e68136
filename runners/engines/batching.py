"""Joins what the steps of a runner want of its engine process into batches, whatever job it is for.

    have ─▶ waiting ─▶ the oldest, and all that are like it, as many as a batch holds ─▶ process ─▶ pictures
               ▲                                                              │
               └── each job by itself, if several failed or were lost together ┘

So a batch holds what arrived while the last was rendered, and a job that breaks the engine fails no other.
"""

import asyncio
import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Protocol

import structlog
from msgspec.structs import replace

from orchestrator.events.steps import ErrorCode, Measure, Memory
from orchestrator.step_errors import StepError, Unexpected
from runners import metrics
from runners.engines.process import EngineGone, EngineProcess
from runners.engines.protocol import (
    Enlarge,
    FromProcess,
    ItemsFailed,
    MemoryExhausted,
    Pixels,
    Render,
    Stepped,
    Work,
)

_GATHER_S = 0.1
"""How long a batch waits for steps that are just being started: a few round trips to the database."""

_log = structlog.get_logger(__name__)


class Report(Protocol):
    """Whom to tell what becomes of an attempt's items; it is the same object for all items of an attempt."""

    def ticked(self, items: list[int], done: int, of: int) -> None:
        """So many steps are done."""

    def rendered(self, items: list[int], size: int, memory: Memory | None) -> None:
        """They were rendered in a batch of `size` images; their pictures follow."""

    def short(self, items: list[int], size: int, measure: Measure | None, memory: Memory | None) -> None:
        """Memory ran out; what is tried next."""

    def lost(self, items: list[int], reason: str) -> None:
        """The engine process was lost."""


class EngineLost(StepError):
    """The engine process died or hung with an attempt's items in hand."""

    error_code = "provider_error"
    retryable = True


class Withdrawn(StepError):
    """The runner stops, and renders nothing new."""

    error_code = "infra_unavailable"
    retryable = True


class _Refused(StepError):
    """What the engine says of an item that failed."""

    error_code: ErrorCode  # type: ignore[misc]  # told by the engine, of each failure
    retryable: bool  # type: ignore[misc]

    def __init__(self, failed: ItemsFailed) -> None:
        super().__init__(failed.message)
        self.error_code = failed.error_code
        self.retryable = failed.retryable


class _Request:
    """One item that somebody waits for. work: of that one image. alone: may share a batch with no other attempt's."""

    def __init__(self, item_index: int, work: Work, report: Report) -> None:
        self.item_index = item_index
        self.work = work
        self.report = report
        self.alone = False
        self.picture: asyncio.Future[Pixels] = asyncio.get_running_loop().create_future()


class Batches:
    """What stands between the steps of a runner and its engine process. batch_max: images of a batch, at most."""

    def __init__(self, process: EngineProcess, *, batch_max: int) -> None:
        self._process = process
        self.batch_max = batch_max
        self._waiting: list[_Request] = []
        self._under_way: list[_Request] = []
        self._expected: set[object] = set()
        self._changed = asyncio.Event()
        self._withdrawn = False
        self._working: asyncio.Task[None] | None = None

    def expect_request(self) -> Callable[[], None]:
        """A step is being started that will want something in a moment: a batch waits for it, a little.

        Call what is answered once it has said what it wants, or wants nothing; a second call does nothing.
        """
        here = object()
        self._expected.add(here)

        def arrived() -> None:
            self._expected.discard(here)
            self._changed.set()

        return arrived

    async def render(self, work: Work, item_index: int, report: Report) -> Pixels:
        """Have an item rendered, perhaps beside others, or enlarged. work: of that one image. Raises `StepError`."""
        if self._withdrawn:
            raise Withdrawn("the runner stops")
        request = _Request(item_index, work, report)
        self._waiting.append(request)
        if self._working is None or self._working.done():
            self._working = asyncio.create_task(self._work(), name="batches")
        try:
            return await request.picture
        finally:
            if request in self._waiting:
                self._waiting.remove(request)
            elif request in self._under_way and request.picture.cancelled():
                self._process.cancel([self._under_way.index(request)])

    def withdraw(self) -> None:
        """Refuse what waits, and whatever comes: what is under way is finished."""
        self._withdrawn = True
        for request in self._waiting:
            _fail(request, Withdrawn("the runner stops"))
        self._waiting.clear()

    async def stop(self) -> None:
        """End the process; whoever still waits gets `CancelledError`."""
        if self._working is not None:
            self._working.cancel()
            await asyncio.gather(self._working, return_exceptions=True)
        await self._process.stop()

    async def _work(self) -> None:
        """Have one batch after another, until nobody waits."""
        while self._waiting:
            await self._gather()
            batch = self._next()
            if not batch:
                continue
            self._under_way = batch
            try:
                await self._run(batch)
                for request in batch:
                    if request not in self._waiting:
                        _fail(request, Unexpected(RuntimeError()))  # an engine that leaves items out has a bug
            except asyncio.CancelledError:
                for request in batch:
                    request.picture.cancel()
                raise
            except Exception as error:  # noqa: BLE001  # whatever it was, those who wait must hear of it
                _log.exception("a batch broke")
                for request in batch:
                    _fail(request, Unexpected(error))
            finally:
                self._under_way = []

    async def _gather(self) -> None:
        """Let those come who are on their way."""
        try:
            async with asyncio.timeout(_GATHER_S):
                while self._expected:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            return

    def _next(self) -> list[_Request]:
        if not self._waiting:
            return []
        first = self._waiting[0]
        batch = [first]
        batch += itertools.islice(filter(partial(_may_share, first), self._waiting[1:]), self.batch_max - 1)
        for request in batch:
            self._waiting.remove(request)
        return batch

    async def _run(self, batch: list[_Request]) -> None:
        arrived: list[Pixels] = []
        try:
            try:
                await self._process.work(_joined(batch), partial(self._hear, batch, arrived))
            finally:
                _deliver(batch, arrived)
        except EngineGone as error:
            self._lost(batch, str(error))

    def _lost(self, batch: Sequence[_Request], reason: str) -> None:
        """Try each job's missing items again; those of one job that were by themselves have failed."""
        metrics.ENGINE_LOST.inc()
        _log.warning("engine process lost", reason=reason, images=len(batch))
        left = [
            index for index, request in enumerate(batch) if not request.picture.done() and request not in self._waiting
        ]
        for report, items in _by_report(batch, left):
            report.lost(items, reason)
        error = EngineLost(f"the engine was lost while it rendered: {reason}")
        if len({id(request.report) for request in batch}) > 1:
            self._again([batch[index] for index in left])
        else:
            for request in batch:
                _fail(request, error)

    def _hear(self, batch: Sequence[_Request], arrived: list[Pixels], message: FromProcess) -> None:
        """Pass on what the process says of a batch. arrived: pictures that are not handed over yet."""
        match message:
            case Stepped():
                for report, items in _by_report(batch, message.items):
                    report.ticked(items, message.done, message.of)
            case MemoryExhausted():
                metrics.ENGINE_OOM.inc()
                for report, items in _by_report(batch, message.items):
                    report.short(items, message.size, message.next, message.memory)
            case Pixels():
                if arrived and message.rendering.batch_index <= arrived[-1].rendering.batch_index:
                    _deliver(batch, arrived)  # of the part before, whose last failed
                arrived.append(message)
                if message.rendering.batch_index == message.rendering.batch_size - 1:
                    _deliver(batch, arrived)
            case ItemsFailed():
                self._fail([batch[item] for item in message.items if not batch[item].picture.done()], message)

    def _fail(self, broken: Sequence[_Request], message: ItemsFailed) -> None:
        """Some items failed, whosever fault it was."""
        if len({id(request.report) for request in broken}) > 1:
            self._again(broken)
            return
        for request in broken:
            _fail(request, _Refused(message))

    def _again(self, requests: Sequence[_Request]) -> None:
        """Try each job's items once more, by themselves: then it shows whose fault it was."""
        for request in requests:
            request.alone = True
            if self._withdrawn:
                _fail(request, Withdrawn("the runner stops"))
        if not self._withdrawn:
            self._waiting[:0] = requests


def _may_share(first: _Request, other: _Request) -> bool:
    """May another's item be rendered in the batch of the first?"""
    if not (isinstance(first.work, Render) and isinstance(other.work, Render)):
        return False
    if first.report is not other.report and (first.alone or other.alone):
        return False
    if first.work.as_batch_of is not None or other.work.as_batch_of is not None:
        return False
    return first.work.sampling == other.work.sampling


def _joined(batch: Sequence[_Request]) -> Work:
    first = batch[0].work
    if isinstance(first, Enlarge):
        return first
    return replace(first, specs=[spec for one in batch if isinstance(one.work, Render) for spec in one.work.specs])


def _by_report(batch: Sequence[_Request], places: Iterable[int]) -> Iterable[tuple[Report, list[int]]]:
    """The places' items, by the attempts that they are of."""
    reports: dict[int, Report] = {}
    items: defaultdict[int, list[int]] = defaultdict(list)
    for index in places:
        report = batch[index].report
        reports[id(report)] = report
        items[id(report)].append(batch[index].item_index)
    return [(report, items[key]) for key, report in reports.items()]


def _deliver(batch: Sequence[_Request], arrived: list[Pixels]) -> None:
    """Tell of a batch that was rendered, then hand over its pictures: what is told stands before them in the log."""
    if not arrived:
        return
    [*_, last] = arrived
    metrics.BATCH_IMAGES.observe(last.rendering.batch_size)
    if last.memory is not None:
        metrics.ENGINE_MEMORY.labels("before").set(last.memory.before)
        metrics.ENGINE_MEMORY.labels("peak").set(last.memory.peak)
        metrics.ENGINE_MEMORY.labels("after").set(last.memory.after)
    for report, items in _by_report(batch, [one.item for one in arrived]):
        report.rendered(items, last.rendering.batch_size, last.memory)
    for one in arrived:
        if not batch[one.item].picture.done():
            batch[one.item].picture.set_result(one)
    arrived.clear()


def _fail(request: _Request, error: StepError) -> None:
    if not request.picture.done():
        request.picture.set_exception(error)
