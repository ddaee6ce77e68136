"""`dreamforge audit reproduce`: renders a job's images again from its history, and compares the pixels."""

import argparse
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from PIL import Image, ImageChops
from rich.table import Table

from artifacts.encoding import decode, encode
from artifacts.object_store import ObjectStore, StoredObject, stored_object
from dreamforge.backends import run_with_backends
from dreamforge.cli.console import CONFLICT, FAILED, NOT_FOUND, OK, plain_table, print_message, print_result
from dreamforge.engines import create_engine_process, create_fake_renderer
from dreamforge.settings import Settings
from eventstore.database import Database
from eventstore.integrity.reader import AuditReader
from eventstore.log import Log
from model_registry.catalogue import ModelCatalogue
from orchestrator import codec
from orchestrator.events import ArtifactWritten, DecodedEvent, ModelSelected, Rendering
from orchestrator.service import fold_history
from orchestrator.state import JobState, StepState
from orchestrator.step_errors import StepFailure
from runners.attempt import AttemptBuffer
from runners.engines.batching import BatchScheduler
from runners.engines.protocol import ModelRef, Pixels
from runners.selection import ModelFilesChecker, model_ref
from runners.worker import worker_for


class ReproducedImage(msgspec.Struct, frozen=True, kw_only=True):
    """A reproduced image. difference: the largest of any pixel's channel, of 255; None if it was not reproduced.

    pixels: how many differ. environment: differences in versions, device and so on. problem: why it was not reproduced.
    changed: the file in the store is not the one that was written, regardless of its pixels.
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
        """Whether all pixels are equal and the file is the one that was written."""
        return self.difference == 0 and not self.changed


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Reproduce a job; returns the exit code."""

    async def ask(database: Database, store: ObjectStore) -> tuple[int, str, list[ReproducedImage]]:
        history = [event for event in await AuditReader(database).read_stream(args.job) if event.category == "job"]
        if not history:
            return NOT_FOUND, f"the log has no job {args.job}", []
        job = fold_history(history)
        events = [codec.decode_event(event) for event in history]
        if job.erased:
            return CONFLICT, f"the prompt of job {args.job} was erased; its images can't be made again", []
        async with _run_engine(settings) as batches:
            reproducer = _JobReproducer(job, events, store, batches, ModelCatalogue(Log(database)), settings)
            return (
                OK,
                "",
                [
                    await reproducer.reproduce_item(step, item)
                    for step in job.steps
                    for item in _artifacts_in_order(step)
                ],
            )

    code, reason, results = run_with_backends(settings, "audit", ask)
    if code != OK:
        return print_message(code, reason)
    print_result(args.output, results, _results_table(results))
    if not results:
        return print_message(FAILED, f"nothing was compared: job {args.job} has no image")
    differ = sum(not one.identical for one in results)
    return (
        print_message(FAILED, f"{differ} of {len(results)} image(s) could not be made again as they are")
        if differ
        else OK
    )


@asynccontextmanager
async def _run_engine(settings: Settings) -> AsyncIterator[BatchScheduler]:
    """An engine process as a runner with these settings has it. It starts at its first work."""
    batches = BatchScheduler(create_engine_process(settings), batch_max=1)
    try:
        yield batches
    finally:
        await batches.stop()


class _JobReproducer:
    """Reproduces the images of one job."""

    def __init__(
        self,
        job: JobState,
        events: Sequence[DecodedEvent],
        store: ObjectStore,
        batches: BatchScheduler,
        models: ModelCatalogue,
        settings: Settings,
    ) -> None:
        self._job = job
        self._store = store
        self._batches = batches
        self._models = models
        self._settings = settings
        self._renderer = create_fake_renderer(settings)
        self._files = ModelFilesChecker()
        self._selected = {
            (event.body.step_id, event.body.attempt): event.body
            for event in events
            if isinstance(event.body, ModelSelected)
        }

    async def reproduce_item(self, step: StepState, written: ArtifactWritten) -> ReproducedImage:
        """Reproduce an item and compare it. A failure is returned as a problem."""
        identity: dict[str, Any] = {"step": step.name, "item_index": written.item_index, "s3_key": written.s3_key}
        try:
            body = await self._store.get(written.s3_key)
            before = self._decode(body)
            after, rendering = await self._render_again(step, written)
        except StepFailure as error:
            return ReproducedImage(**identity, difference=None, pixels=0, environment=[], problem=str(error))
        environment = _environment_differences(written.rendering, rendering)
        identity["changed"] = stored_object(body) != StoredObject(written.bytes, written.sha256)
        if before.size != after.size:
            sizes = f"it was {before.width}x{before.height}, and is {after.width}x{after.height}"
            return ReproducedImage(**identity, difference=None, pixels=0, environment=environment, problem=sizes)
        largest, pixels = _compare_pixels(before, after)
        return ReproducedImage(**identity, difference=largest, pixels=pixels, environment=environment)

    async def _render_again(self, step: StepState, written: ArtifactWritten) -> tuple[Image.Image, Rendering | None]:
        item, before = written.item_index, self._job.step_before(step)
        original = written.rendering
        source = None
        if before is not None:
            parent = before.artifacts[item]
            source = await self._store.get_verified(parent.s3_key, StoredObject(parent.bytes, parent.sha256))
        if original is None:
            self._expect_no_model(step, written)
            return self._decode(self._renderer.render(self._job, step.name, item, source)), None
        model = await self._find_original_model(step, written, original)
        work = worker_for(step.name).build_request(
            model, self._renderer.build_item(self._job, step.name, item, source), original
        )
        pixels = await self._batches.render(work, item, AttemptBuffer(step))  # its reports are dropped
        return self._encode_and_decode(pixels), pixels.rendering

    async def _find_original_model(self, step: StepState, written: ArtifactWritten, rendering: Rendering) -> ModelRef:
        """The model that rendered the original. Raises `StepFailure` if it is missing or has changed."""
        if rendering.model_id is None:
            return ModelRef(kind="generator", path=self._selected[step.step_id, written.attempt].source)
        view = await self._models.model(rendering.model_id)
        if view is None:
            raise StepFailure(f"model {rendering.model_id} is not registered any more")
        self._files.check(view)
        return model_ref(view)

    def _expect_no_model(self, step: StepState, written: ArtifactWritten) -> None:
        """Raise `StepFailure` if a model rendered an image whose rendering is not recorded."""
        selected = self._selected.get((step.step_id, written.attempt))
        if selected is not None and selected.engine not in {"fake", "image"}:
            raise StepFailure("an attempt before the one that recorded it made it, and its file does not tell how")

    def _encode_and_decode(self, pixels: Pixels) -> Image.Image:
        """An image after encoding and decoding, since JPEG is lossy."""
        return self._decode(encode(pixels.image(), self._job.generate.format))

    def _decode(self, body: bytes) -> Image.Image:
        return decode(body, self._settings.max_pixels).convert("RGB")


def _artifacts_in_order(step: StepState) -> list[ArtifactWritten]:
    return [step.artifacts[index] for index in sorted(step.artifacts)]


def _compare_pixels(before: Image.Image, after: Image.Image) -> tuple[int, int]:
    """The largest difference of a channel, and how many pixels differ."""
    difference = ImageChops.difference(before, after)
    red, green, blue = difference.split()
    worst = ImageChops.lighter(ImageChops.lighter(red, green), blue)
    counts = worst.histogram()
    return max(value for value, count in enumerate(counts) if count), sum(counts[1:])


def _environment_differences(then: Rendering | None, now: Rendering | None) -> list[str]:
    """The differences between two environments, as text."""
    if then is None or now is None:
        return []
    names = sorted(then.versions.keys() | now.versions.keys())
    pairs = [("device", then.device, now.device), ("dtype", then.dtype, now.dtype)]
    pairs += [(name, then.versions.get(name, "none"), now.versions.get(name, "none")) for name in names]
    pairs.append(("measures", ", ".join(then.measures) or "none", ", ".join(now.measures) or "none"))
    return [f"{name}: {old} then, {new} now" for name, old, new in pairs if old != new]


def _results_table(results: Sequence[ReproducedImage]) -> Table:
    rows = []
    for one in results:
        result = "identical"
        if one.problem is not None:
            result = one.problem
        elif one.difference:
            result = f"{one.pixels:,} differ, by {one.difference}/255 at most"
        if one.changed:
            result += "; the file is not the one that was written"
        rows.append((one.step, one.item_index, result, "\n".join(one.environment) or "the same"))
    return plain_table("STEP", "ITEM", "PIXELS", "ENVIRONMENT", rows=rows)
