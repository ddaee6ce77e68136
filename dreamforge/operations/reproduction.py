"""What `dreamforge audit reproduce` does: renders a job's images again from its history, and compares the pixels."""

import argparse
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from msgspec.structs import replace
from PIL import Image, ImageChops
from rich.table import Table

from artifacts.encoding import decode, encode
from artifacts.object_store import ObjectStore, StoredObject, stored_object
from dreamforge.backends import ask_backends
from dreamforge.cli.console import CONFLICT, FAILED, NOT_FOUND, OK, complain, print_answer
from dreamforge.engines import engine_process, fake_engine
from dreamforge.settings import Settings
from eventstore.database import Database
from eventstore.integrity.reader import AuditReader
from eventstore.log import Log
from model_registry.catalogue import Models
from orchestrator import codec
from orchestrator.events.base import DecodedEvent
from orchestrator.events.steps import ArtifactWritten, Measure, Memory, ModelSelected, Rendering
from orchestrator.service import readable
from orchestrator.state import JobState, StepState
from orchestrator.step_errors import StepError
from runners.engines.batching import BatchScheduler
from runners.engines.protocol import ModelRef, Pixels, Work
from runners.item_renderer import enlarge, render
from runners.selection import ModelFiles, model_ref


class Reproduced(msgspec.Struct, frozen=True, kw_only=True):
    """An image that was made again. difference: the largest of any pixel's channel, of 255; None if it could not be.

    pixels: how many differ. environment: what is not as it was, such as versions and device. problem: why it could not.
    changed: the file in the store is not the one that was written, whatever its pixels.
    """

    step: str
    item_index: int
    s3_key: str
    difference: int | None
    pixels: int
    environment: list[str]
    problem: str | None = None
    changed: bool = False

    @property
    def identical(self) -> bool:
        """Is it the very same picture, in the file that was written?"""
        return self.difference == 0 and not self.changed


class _Silence:
    """Nobody needs to hear how a reproduction gets on (a `batches.Report`)."""

    def step_done(self, items: list[int], done: int, of: int) -> None:
        """Ignored: a reproduction records nothing."""

    def batch_rendered(self, items: list[int], size: int, memory: Memory | None) -> None:
        """Ignored: a reproduction records nothing."""

    def memory_exhausted(self, items: list[int], size: int, measure: Measure | None, memory: Memory | None) -> None:
        """Ignored: a reproduction records nothing."""

    def engine_lost(self, items: list[int], reason: str) -> None:
        """Ignored: a reproduction records nothing."""


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Reproduce a job; returns the exit code."""

    async def ask(database: Database, store: ObjectStore) -> tuple[int, str, list[Reproduced]]:
        history = [event for event in await AuditReader(database).stream(args.job) if event.category == "job"]
        if not history:
            return NOT_FOUND, f"the log has no job {args.job}", []
        job = readable(history)
        events = [codec.decode_event(event) for event in history]
        if job.erased:
            return CONFLICT, f"the prompt of job {args.job} was erased; its images can't be made again", []
        async with _engine(settings) as batches:
            again = _Again(job, events, store, batches, Models(Log(database)), settings)
            return OK, "", [await again.item(step, item) for step in job.steps for item in _items(step)]

    code, why, found = ask_backends(settings, "audit", ask)
    if code != OK:
        return complain(code, why)
    print_answer(args.output, found, _table(found))
    if not found:
        return complain(FAILED, f"nothing was compared: job {args.job} has no image")
    differ = sum(not one.identical for one in found)
    return complain(FAILED, f"{differ} of {len(found)} image(s) could not be made again as they are") if differ else OK


@asynccontextmanager
async def _engine(settings: Settings) -> AsyncIterator[BatchScheduler]:
    """An engine process of our own, as a runner of these settings would have; it starts when it is needed."""
    batches = BatchScheduler(engine_process(settings), batch_max=1)
    try:
        yield batches
    finally:
        await batches.stop()


class _Again:
    """Makes the images of one job again."""

    def __init__(
        self,
        job: JobState,
        events: Sequence[DecodedEvent],
        store: ObjectStore,
        batches: BatchScheduler,
        models: Models,
        settings: Settings,
    ) -> None:
        self._job = job
        self._store = store
        self._batches = batches
        self._models = models
        self._settings = settings
        self._fake_engine = fake_engine(settings)
        self._files = ModelFiles()
        self._selected = {
            (event.body.step_id, event.body.attempt): event.body
            for event in events
            if isinstance(event.body, ModelSelected)
        }

    async def item(self, step: StepState, written: ArtifactWritten) -> Reproduced:
        """Make an item again and compare; what stands in the way is told."""
        told: dict[str, Any] = {"step": step.name, "item_index": written.item_index, "s3_key": written.s3_key}
        try:
            body = await self._store.get(written.s3_key)
            before = self._decoded(body)
            after, rendering = await self._rendered(step, written)
        except StepError as error:
            return Reproduced(**told, difference=None, pixels=0, environment=[], problem=str(error))
        environment = _differences(written.rendering, rendering)
        told["changed"] = stored_object(body) != StoredObject(written.bytes, written.sha256)
        if before.size != after.size:
            sizes = f"it was {before.width}x{before.height}, and is {after.width}x{after.height}"
            return Reproduced(**told, difference=None, pixels=0, environment=environment, problem=sizes)
        largest, pixels = _compared(before, after)
        return Reproduced(**told, difference=largest, pixels=pixels, environment=environment)

    async def _rendered(self, step: StepState, written: ArtifactWritten) -> tuple[Image.Image, Rendering | None]:
        item, job = written.item_index, self._job
        made = written.rendering
        source = None
        if step.name == "upscale":
            parent = job.steps[0].artifacts[item]
            source = await self._store.get_verified(parent.s3_key, StoredObject(parent.bytes, parent.sha256))
        if made is None:
            self._expect_painted(step, written)
            body = (
                self._fake_engine.generate(job, item)
                if source is None
                else self._fake_engine.upscale(job, item, source)
            )
            return self._decoded(body), None
        model = await self._model(step, written, made)
        if source is None:
            work: Work = replace(
                render(model, job, item),
                as_batch_of=made.batch_size,
                from_index=made.batch_index,
                measures=made.measures,
            )
            pixels = await self._batches.render(work, item, _Silence())
        else:
            work = replace(enlarge(model, job, item, self._decoded(source)), tile=made.tile)
            pixels = await self._batches.render(work, item, _Silence())
        return self._as_written(pixels), pixels.rendering

    async def _model(self, step: StepState, written: ArtifactWritten, made: Rendering) -> ModelRef:
        """The very model that made it. Raises `StepError` if it is not there, or has changed."""
        if made.model_id is None:
            return ModelRef(kind="generator", path=self._selected[step.step_id, written.attempt].source)
        view = await self._models.model(made.model_id)
        if view is None:
            raise StepError(f"model {made.model_id} is not registered any more")
        self._files.check(view)
        return model_ref(view)

    def _expect_painted(self, step: StepState, written: ArtifactWritten) -> None:
        """Raise `StepError` if a model made an image, and it does not tell how."""
        selected = self._selected.get((step.step_id, written.attempt))
        if selected is not None and selected.engine not in {"fake", "image"}:
            raise StepError("an attempt before the one that recorded it made it, and its file does not tell how")

    def _as_written(self, pixels: Pixels) -> Image.Image:
        """A picture as its file keeps it: a JPEG loses some."""
        return self._decoded(encode(pixels.image(), self._job.generate.format))

    def _decoded(self, body: bytes) -> Image.Image:
        return decode(body, self._settings.max_pixels).convert("RGB")


def _items(step: StepState) -> list[ArtifactWritten]:
    return [step.artifacts[index] for index in sorted(step.artifacts)]


def _compared(before: Image.Image, after: Image.Image) -> tuple[int, int]:
    """The largest difference of a channel, and how many pixels differ."""
    difference = ImageChops.difference(before, after)
    red, green, blue = difference.split()
    worst = ImageChops.lighter(ImageChops.lighter(red, green), blue)
    counts = worst.histogram()
    return max(value for value, count in enumerate(counts) if count), sum(counts[1:])


def _differences(then: Rendering | None, now: Rendering | None) -> list[str]:
    """What of the environment is not as it was when the image was made."""
    if then is None or now is None:
        return []
    names = sorted(then.versions.keys() | now.versions.keys())
    pairs = [("device", then.device, now.device), ("dtype", then.dtype, now.dtype)]
    pairs += [(name, then.versions.get(name, "none"), now.versions.get(name, "none")) for name in names]
    pairs.append(("measures", ", ".join(then.measures) or "none", ", ".join(now.measures) or "none"))
    return [f"{name}: {old} then, {new} now" for name, old, new in pairs if old != new]


def _table(found: Sequence[Reproduced]) -> Table:
    table = Table("STEP", "ITEM", "PIXELS", "ENVIRONMENT", box=None)
    for one in found:
        verdict = "identical"
        if one.problem is not None:
            verdict = one.problem
        elif one.difference:
            verdict = f"{one.pixels:,} differ, by {one.difference}/255 at most"
        if one.changed:
            verdict += "; the file is not the one that was written"
        table.add_row(one.step, str(one.item_index), verdict, "\n".join(one.environment) or "the same")
    return table
