"""The jobs, and what a peer does for one: the same pixels, files and objects as Dream Forge's fake engine.

generate: paint ─▶ encode ─▶ put        upscale: get ─▶ decode ─▶ resize ─▶ encode ─▶ put
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import boto3
import msgspec
from botocore.config import Config

from artifacts.encoding import decode, encode
from artifacts.object_store import S3Config
from orchestrator.plan import item_seed
from runners.engines.landscape import paint
from runners.upscalers.image import ImageUpscaler

PROMPT = "a castle on a hill at dawn"
SIDE = 64
SCALE = 2
THREADS = 8
_MAX_PIXELS = 64_000_000


class Job(msgspec.Struct, frozen=True):
    """A chained job. number: its seed, and in its objects' keys. count: of images; 0 makes its steps empty."""

    number: int
    count: int = 1

    def key(self, step: str, index: int) -> str:
        """The key of an item's object."""
        return f"peers/{self.number}/{step}/{index}.png"


class PeerConfig(msgspec.Struct, frozen=True):
    """What a peer's processes are given. store: the client for S3."""

    db_url: str
    s3: S3Config
    redis_url: str | None = None
    store: Literal["boto3", "obstore"] = "boto3"


def paint_item(job: Job, index: int) -> bytes:
    """The file of a generated item."""
    return encode(paint(PROMPT, item_seed(job.number, job.count, index), (SIDE, SIDE)), "png")


def upscale_item(body: bytes) -> bytes:
    """The file of an upscaled item."""
    return encode(ImageUpscaler().upscale(decode(body, _MAX_PIXELS), SCALE), "png")


class Boto3Steps:
    """Steps that block, one item after the other."""

    def __init__(self, config: PeerConfig) -> None:
        self._bucket = config.s3.bucket
        self._client: Any = boto3.client(
            "s3",
            endpoint_url=config.s3.endpoint,
            region_name=config.s3.region,
            aws_access_key_id=config.s3.access_key,
            aws_secret_access_key=config.s3.secret_key,
            config=Config(
                signature_version="s3v4",
                s3={"addressing_style": "path"},
                max_pool_connections=THREADS,
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
                tcp_keepalive=True,
            ),
        )

    def generate(self, job: Job) -> None:
        """Run the first step."""
        for index in range(job.count):
            self.generate_item(job, index)

    def upscale(self, job: Job) -> None:
        """Run the second step."""
        for index in range(job.count):
            self.upscale_item(job, index)

    def generate_item(self, job: Job, index: int) -> None:
        """Paint and put an item."""
        self._put(job.key("generate", index), paint_item(job, index))

    def upscale_item(self, job: Job, index: int) -> None:
        """Get, resize and put an item."""
        source = self._client.get_object(Bucket=self._bucket, Key=job.key("generate", index))["Body"].read()
        self._put(job.key("upscale", index), upscale_item(source))

    def _put(self, key: str, body: bytes) -> None:
        self._client.put_object(Bucket=self._bucket, Key=key, Body=body, ContentType="image/png")


class ThreadedSteps:
    """boto3 in threads, one call for each item."""

    def __init__(self, config: PeerConfig) -> None:
        self._steps = Boto3Steps(config)
        self._threads = ThreadPoolExecutor(THREADS)

    async def generate(self, job: Job) -> None:
        """Run the first step, items concurrently."""
        await self._run(self._steps.generate_item, job)

    async def upscale(self, job: Job) -> None:
        """Run the second step, items concurrently."""
        await self._run(self._steps.upscale_item, job)

    async def _run(self, step: Callable[[Job, int], None], job: Job) -> None:
        loop = asyncio.get_running_loop()
        await asyncio.gather(*(loop.run_in_executor(self._threads, step, job, index) for index in range(job.count)))


class ObstoreSteps:
    """obstore on the event loop; the pixels in threads."""

    def __init__(self, config: PeerConfig) -> None:
        import obstore  # noqa: PLC0415  # only this variant needs it
        from obstore.store import S3Store  # noqa: PLC0415

        self._obstore = obstore
        self._threads = ThreadPoolExecutor(THREADS)
        self._store = S3Store(
            config.s3.bucket,
            endpoint=config.s3.endpoint,
            region=config.s3.region,
            access_key_id=config.s3.access_key,
            secret_access_key=config.s3.secret_key,
            virtual_hosted_style_request=False,
            client_options={"allow_http": True},
        )

    async def generate(self, job: Job) -> None:
        """Run the first step, items concurrently."""
        await asyncio.gather(*(self._generate_item(job, index) for index in range(job.count)))

    async def upscale(self, job: Job) -> None:
        """Run the second step, items concurrently."""
        await asyncio.gather(*(self._upscale_item(job, index) for index in range(job.count)))

    async def _generate_item(self, job: Job, index: int) -> None:
        body = await asyncio.get_running_loop().run_in_executor(self._threads, paint_item, job, index)
        await self._obstore.put_async(self._store, job.key("generate", index), body)

    async def _upscale_item(self, job: Job, index: int) -> None:
        answer = await self._obstore.get_async(self._store, job.key("generate", index))
        source = bytes(await answer.bytes_async())
        body = await asyncio.get_running_loop().run_in_executor(self._threads, upscale_item, source)
        await self._obstore.put_async(self._store, job.key("upscale", index), body)


AsyncSteps = ThreadedSteps | ObstoreSteps


def async_steps(config: PeerConfig) -> AsyncSteps:
    """The steps of a peer that runs coroutines."""
    return ObstoreSteps(config) if config.store == "obstore" else ThreadedSteps(config)
