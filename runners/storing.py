"""Reads and writes the images of an attempt in the object store, and waits while the store is away."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

import structlog

from artifacts.encoding import content_type
from artifacts.errors import ObjectChanged, ObjectMissing, ObjectStoreUnavailable
from artifacts.object_store import ObjectStore, StoredObject, hash_body
from eventstore.database import Backoff
from eventstore.ids import new_id
from orchestrator.events import ArtifactWritten, Rendering
from orchestrator.plan import item_seed, object_key
from orchestrator.service import JobService
from orchestrator.state import JobState, StepState
from orchestrator.step_errors import ProviderError
from runners.item_renderer import ItemRenderer, RenderedImage

T = TypeVar("T")

MAX_UPLOADS = 4
_MAX_METADATA_BYTES = 2**20
"""Room beside a picture's pixels for what its file says of it; no encoding takes more than the pixels themselves."""

_log = structlog.get_logger(__name__)


class ImageStorage:
    """The images of a runner's steps. outage_s: how long to wait for a store that is away, unless `stopping` is set."""

    def __init__(
        self,
        jobs: JobService,
        store: ObjectStore,
        item_renderer: ItemRenderer,
        *,
        outage_s: float,
        stopping: asyncio.Event,
    ) -> None:
        self._jobs = jobs
        self._store = store
        self._item_renderer = item_renderer
        self._outage_s = outage_s
        self._stopping = stopping

    async def read_source(self, state: JobState, step: StepState, index: int) -> bytes | None:
        """The file of an item of the step before; None for the first step.

        A file that this process has stored lately is not fetched again, but the store must still have it unchanged:
        see `ObjectStore.get_verified`.
        """
        before = state.step_before(step)
        if before is None:
            return None
        parent = before.artifacts[index]
        written = StoredObject(parent.bytes, parent.sha256)
        return await self._retry_while_store_away(state, partial(self._store.get_verified, parent.s3_key, written))

    async def put_image(self, state: JobState, step: StepState, index: int, rendered: RenderedImage) -> ArtifactWritten:
        """Store an item's file. Raises `StepFailure`, also where another file lies under its key."""
        generate = state.generate
        seed = item_seed(generate.seed, generate.count, index)
        size = rendered.size
        if step.first_started_at is None:
            raise RuntimeError(f"step {step.name} of job {state.job_id} writes before it started")
        key = object_key(
            state.tenant, state.job_id, step.name, step.first_started_at, index, size, seed, generate.format
        )
        ours, made = await hash_body(rendered.file_bytes), rendered.rendering
        if index in step.lost:
            stored = ours
            await self._replace_lost(state, step.artifacts[index], key, rendered)
        else:
            put = partial(self._store.put, key, rendered.file_bytes, content_type(generate.format))
            stored = await self._retry_while_store_away(state, put)
        if stored != ours:
            made = await self._read_found_rendering(state, step, index, rendered, key, stored)
        return ArtifactWritten(
            **step.identity,
            item_index=index,
            artifact_id=new_id(),
            format=generate.format,
            width=size[0],
            height=size[1],
            seed=seed,
            s3_key=key,
            bytes=stored.size,
            sha256=stored.sha256,
            rendering=made,
        )

    async def _replace_lost(self, state: JobState, lost: ArtifactWritten, key: str, rendered: RenderedImage) -> None:
        """Store an image that was lost: over whatever lies under its key, which was found to be another's."""
        if key != lost.s3_key:
            raise ProviderError(f"{lost.s3_key} was lost, and can't be made again: the engine now makes {key}")
        write = partial(self._store.replace, key, rendered.file_bytes, content_type(lost.format))
        await self._retry_while_store_away(state, write)

    async def _read_found_rendering(
        self, state: JobState, step: StepState, index: int, rendered: RenderedImage, key: str, stored: StoredObject
    ) -> Rendering | None:
        """How the image that lies under our key came about. Raises `ObjectChanged` if no attempt of ours wrote it."""
        max_bytes = 4 * rendered.size[0] * rendered.size[1] + _MAX_METADATA_BYTES
        if stored.size > max_bytes:
            raise ObjectChanged(
                f"{key} holds {stored.size:,} bytes, more than an attempt at this image writes; remove it"
            )
        body = await self._retry_while_store_away(state, partial(self._store.get_verified, key, stored))
        return await self._item_renderer.read_stored_rendering(state, step.name, index, body, rendered.size)

    async def find_lost(self, state: JobState, step: StepState) -> list[int]:
        """Which images of the step before are gone from the store or changed: all of them, so that one retry is enough.

        None if the store is away, or the step needs none.
        """
        before = state.step_before(step)
        written = {} if before is None else before.artifacts
        turns = asyncio.Semaphore(MAX_UPLOADS)

        async def is_there(item: ArtifactWritten) -> bool:
            async with turns:
                try:
                    await self._store.get_verified(item.s3_key, StoredObject(item.bytes, item.sha256))
                except (ObjectMissing, ObjectChanged):
                    return False
                return True

        try:
            there = await asyncio.gather(*map(is_there, written.values()))
        except ObjectStoreUnavailable as error:
            _log.warning("what is lost can't be told", job_id=str(state.job_id), error=str(error))
            return []
        return sorted(index for index, found in zip(written, there, strict=True) if not found)

    async def _retry_while_store_away(self, state: JobState, call: Callable[[], Awaitable[T]]) -> T:
        """Repeat a call while the object store is away: an outage keeps the steps waiting, and fails none for hours."""
        deadline = time.monotonic() + self._outage_s
        backoff = Backoff()
        while True:
            try:
                return await call()
            except ObjectStoreUnavailable as error:
                if self._stopping.is_set() or time.monotonic() > deadline:
                    raise
                if (await self._jobs.load(state.job_id)).cancel_pending:
                    raise
                if backoff.failures == 0:
                    _log.warning("object store away, the step waits", job_id=str(state.job_id), error=str(error))
                await backoff.wait()
