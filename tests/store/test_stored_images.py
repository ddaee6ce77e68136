"""What lies in the object store is held against what was written before anything is made of it."""

import asyncio
from typing import Any

import pytest
from PIL import Image

from artifacts.encoding import encode
from artifacts.lineage import embed_lineage, read_lineage
from artifacts.object_store import ObjectStore, S3Config, StoredObject
from orchestrator.events import ArtifactWritten, StepError
from orchestrator.state import JobState
from tests.kit import Store
from tests.store.test_troubled_steps import Bench, Hanging, bench

PNG = "image/png"


class Small(Hanging):
    """An engine that paints smaller images than were asked for."""

    def __init__(self) -> None:
        super().__init__(-1)

    def render(self, job: JobState, step: str, index: int, source: bytes | None) -> bytes:
        if step != "generate":
            return super().render(job, step, index, source)
        return encode(Image.linear_gradient("L").resize((48, 40)).convert("RGB"), "png")


class Occupied(ObjectStore):
    """A store in which something lies under each key already, made of what is put there."""

    def __init__(self, config: S3Config, foreign: Any) -> None:
        super().__init__(config)
        self._foreign = foreign

    async def put(self, key: str, body: bytes, content_type: str) -> StoredObject:
        await super().put(key, self._foreign(body), content_type)
        return await super().put(key, body, content_type)


def of_size(size: tuple[int, int]) -> bytes:
    return encode(Image.linear_gradient("L").resize(size).convert("RGB"), "png")


def of_another_item(body: bytes) -> bytes:
    found = read_lineage(body)
    assert found is not None
    return embed_lineage(body, type(found)(job_id=found.job_id, item_index=9, generate=found.generate, upscale=None))


async def written(work: Bench) -> list[ArtifactWritten]:
    return [body for body in await work.bodies() if isinstance(body, ArtifactWritten)]


async def failure(work: Bench) -> str:
    """Why the step failed for good, at its first attempt."""
    error, finish = (await work.bodies())[-2:]
    assert isinstance(error, StepError)
    assert finish.code == "step.finish"
    assert error.error_code == "provider_error"
    return error.error_message


@pytest.mark.parametrize("size", [(3000, 1000), (64, 64)], ids=["larger", "of the same size"])
async def test_a_replaced_source_is_not_enlarged(store: Store, s3_config: S3Config, size: tuple[int, int]) -> None:
    """Given another image in place of what generate wrote, then the upscale fails, and says what lies there."""
    objects = ObjectStore(s3_config)
    async with bench(store, objects, 1, scale=2) as work:
        runner = work.runner(Hanging(-1))
        await work.attempt(runner)
        [source] = await written(work)
        await objects.replace(source.s3_key, of_size(size), PNG)
        await work.follow()
        await work.attempt(runner)
        why = await failure(work)
        assert source.s3_key in why
        assert f"{source.bytes:,} bytes of SHA-256 {source.sha256}" in why
        assert await written(work) == [source]


async def test_a_source_that_this_runner_keeps_in_memory_is_lost_when_it_is_gone(
    store: Store, s3_config: S3Config
) -> None:
    """Given images of a runner that somebody removed and replaced, then the same runner finds both of them lost."""
    objects, somebody = ObjectStore(s3_config), ObjectStore(s3_config)
    async with bench(store, objects, 3, scale=2) as work:
        runner = work.runner(Hanging(-1))
        await work.attempt(runner)
        removed, _, replaced = sorted(await written(work), key=lambda one: one.item_index)
        await asyncio.to_thread(somebody._s3.delete_object, Bucket=s3_config.bucket, Key=removed.s3_key)
        await somebody.replace(replaced.s3_key, of_size((64, 64)), PNG)
        await work.follow()
        await work.attempt(runner)
        error = (await work.bodies())[-2]
        assert isinstance(error, StepError)
        assert error.lost == [0, 2]
    await somebody.close()


@pytest.mark.parametrize(
    ("foreign", "message"),
    [
        (lambda body: body[: len(body) // 2], "written by no attempt"),
        (lambda _: b"no image", "written by no attempt"),
        (lambda _: of_size((63, 64)), "is 63x64 instead of 64x64"),
        (of_another_item, "is another image"),
        (lambda _: of_size((64, 64)), "is another image"),
        (lambda body: body + bytes(2_000_000), "more than an attempt at this image writes"),
    ],
    ids=["cut off", "no image", "another size", "another item", "without a word", "too large"],
)
async def test_what_no_attempt_wrote_is_not_adopted(
    store: Store, s3_config: S3Config, foreign: Any, message: str
) -> None:
    """Given a foreign object under a key of ours, then it is not recorded as the job's image."""
    async with bench(store, Occupied(s3_config, foreign), 1) as work:
        await work.attempt(work.runner(Hanging(-1)))
        assert message in await failure(work)
        assert await written(work) == []


async def test_what_is_written_is_described_by_what_it_is(store: Store, s3_config: S3Config) -> None:
    """Given an engine that makes another size than was asked for, then the log and the key name the size that it is."""
    objects = ObjectStore(s3_config)
    async with bench(store, objects, 1, scale=2) as work:
        runner = work.runner(Small())
        await work.attempt(runner)
        await work.follow()
        await work.attempt(runner)
        small, large = await written(work)
        assert (small.width, small.height, large.width, large.height) == (48, 40, 96, 80)
        assert "_48x40_" in small.s3_key
        assert "_96x80_" in large.s3_key
