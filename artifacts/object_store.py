"""The object store: every image is written once and never overwritten.

    put ──If-None-Match: *──▶ 200  the object is written
                              412  another attempt has written it: read that object and adopt it
                              409  another attempt is writing it now: try again

A runner that lost its lease can therefore neither overwrite an image nor leave one that no event names.
"""

import asyncio
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import obstore
from botocore.exceptions import BotoCoreError, ClientError
from obstore.exceptions import AlreadyExistsError, BaseError, NotModifiedError

from artifacts.errors import ObjectChanged, ObjectStoreUnavailable
from artifacts.recent_bodies import RecentBodies, RecentBody
from artifacts.s3_clients import READ_TIMEOUT_S, S3Config, TransferClients, open_boto3_client, open_transfer_clients
from artifacts.s3_errors import boto3_failure, obstore_failure, step_error
from artifacts.stored_object import ContentHash, StoredObject, hash_body, stored_object

if TYPE_CHECKING:
    from obstore import GetOptions, GetResult, PutResult

__all__ = ["MAX_OBJECT_BYTES", "ObjectStore", "S3Config", "StoredObject", "hash_body", "stored_object"]

T = TypeVar("T")

READY_TIMEOUT_S = 5.0
MAX_OBJECT_BYTES = 2**29
"""Limit of a read whose expected size is unknown. No file of a job is larger."""

_CHUNK_BYTES = 2**20
_SLOWEST_UPLOAD_BYTES_PER_S = 2**18
CONFLICT_PAUSES_S = (0.05, 0.1, 0.2, 0.4, 0.8)
CREATED_BY_ANOTHER = {"BucketAlreadyOwnedByYou", "BucketAlreadyExists", "OperationAborted"}


class ObjectStore:
    """One bucket. Objects pass through obstore on the event loop; boto3 asks about the bucket, in a thread pool.

    What this object has put lately is kept in memory. `get_verified` asks the store whether that object is unchanged
    instead of reading it again.
    """

    def __init__(self, config: S3Config, *, threads: int = 4) -> None:
        self._config = config
        self._threads = threads
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="objects")
        self._boto3_lock = threading.Lock()
        self._boto3: Any = None
        self._transfer: TransferClients | None = None
        self._recent = RecentBodies()

    async def ensure_bucket(self) -> None:
        """Create the bucket if it does not exist. Safe to call twice, and from two processes at once."""
        await self._in_thread(self._ensure_bucket)

    async def put(self, key: str, body: bytes, content_type: str) -> StoredObject:
        """Write an object, or adopt an existing one with the same key. Returns what the store now holds.

        Raises `ObjectChanged` if the existing object is larger than `MAX_OBJECT_BYTES`.
        """
        written = await self._put_if_absent(key, body, content_type)
        if written is None:
            return await self._describe(key, MAX_OBJECT_BYTES)
        stored = await hash_body(body)
        if written["e_tag"] is not None:
            self._recent.add(key, RecentBody(body, stored, written["e_tag"]))
        return stored

    async def replace(self, key: str, body: bytes, content_type: str) -> None:
        """Overwrite an object. Only erasure and the repair of a lost image do this."""
        self._recent.discard(key)
        with self._translated_errors(key):
            await self._write(key, body, content_type, "overwrite")

    async def get(self, key: str, *, max_bytes: int = MAX_OBJECT_BYTES) -> bytes:
        """Read an object. Raises `ObjectMissing`; `ObjectChanged` if it has more than `max_bytes` bytes."""
        with self._translated_errors(key):
            found = await self._open(key)
            if found.meta["size"] > max_bytes:
                raise self._too_large_error(key, max_bytes)
            return await _read_body(found)

    async def get_verified(self, key: str, expected: StoredObject) -> bytes:
        """Read an object that must have this size and hash. Raises `ObjectMissing` or `ObjectChanged`.

        It never reads more bytes than expected. A body that this object has put is not read again if the store still
        has the object under the ETag of that put.
        """
        recent = self._recent.get(key, expected)
        with self._translated_errors(key):
            try:
                found = await self._open(key, None if recent is None else recent.e_tag)
            except NotModifiedError:
                if recent is None:
                    raise
                return recent.body
            size = found.meta["size"]
            # The body has as many bytes as its Content-Length says; those of another size are not read.
            body = await _read_body(found) if size == expected.size else None
        if body is None or await hash_body(body) != expected:
            raise self._changed_error(key, expected, size)
        return body

    async def list_keys(self, prefix: str) -> list[str]:
        """The keys of all objects with a prefix, in order."""
        return await self._in_thread(partial(self._list_keys, prefix))

    async def describe(self, key: str) -> StoredObject:
        """Read an object of any size; returns its size and hash. Raises `ObjectMissing`."""
        return await self._describe(key)

    async def check_ready(self) -> None:
        """Raise `ObjectStoreUnavailable` unless the bucket is reachable within `READY_TIMEOUT_S` seconds."""
        try:
            async with asyncio.timeout(READY_TIMEOUT_S):
                await self._in_thread(self._check_bucket)
        except TimeoutError:
            raise ObjectStoreUnavailable(f"{self._location} gave no answer within {READY_TIMEOUT_S:g} s") from None

    async def server_time(self) -> datetime | None:
        """The store's time, to the second; None if its responses have no Date header."""
        return await self._in_thread(self._server_time)

    def presign(self, key: str, expires_s: int, *, head: bool = False) -> str:
        """Return a URL that anyone can fetch the object from, for `expires_s` seconds. head: for HEAD, not GET.

        It does no I/O and takes about 0.03 ms. The first call may have to create the clients, which takes up to 100 ms:
        on an event loop use `presign_many`.
        """
        if self._transfer is None:
            self._transfer = open_transfer_clients(self._config)
        # The signature includes the method.
        return obstore.sign(self._transfer.signer, "HEAD" if head else "GET", key, timedelta(seconds=expires_s))

    async def presign_many(self, keys: Iterable[str], expires_s: int, *, head: bool = False) -> list[str]:
        """Return the URLs of many objects, in the order of their keys."""
        signer = (await self._transfer_clients()).signer
        return list(
            await obstore.sign_async(signer, "HEAD" if head else "GET", list(keys), timedelta(seconds=expires_s))
        )

    async def close(self) -> None:
        """Close the connections; running calls end by their own timeouts. A second call does nothing."""
        self._executor.shutdown(wait=False, cancel_futures=True)
        if self._boto3 is not None:
            self._boto3.close()
        # obstore closes the connections of a client that nothing refers to.
        self._transfer = None
        self._recent.clear()

    async def _in_thread(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, call)

    async def _transfer_clients(self) -> TransferClients:
        if self._transfer is None:
            self._transfer = await self._in_thread(partial(open_transfer_clients, self._config))
        return self._transfer

    @property
    def _s3(self) -> Any:
        with self._boto3_lock:
            if self._boto3 is None:
                self._boto3 = open_boto3_client(self._config, self._threads)
            return self._boto3

    @property
    def _location(self) -> str:
        return f"bucket {self._config.bucket!r} at {self._config.endpoint or 'AWS'}"

    async def _put_if_absent(self, key: str, body: bytes, content_type: str) -> "PutResult | None":
        """Write the object if the key does not exist. Returns None if it exists."""
        with self._translated_errors(key):
            for pause_s in CONFLICT_PAUSES_S:
                try:
                    return await self._write(key, body, content_type, "create")
                except AlreadyExistsError as error:  # obstore raises it for both statuses
                    if obstore_failure(error).status != 409:
                        return None
                    await asyncio.sleep(pause_s)
        raise ObjectStoreUnavailable(f"{self._location}: other attempts kept writing {key}; try again")

    async def _write(
        self, key: str, body: bytes, content_type: str, mode: Literal["create", "overwrite"]
    ) -> "PutResult":
        writer = (await self._transfer_clients()).writer
        limit_s = READ_TIMEOUT_S + len(body) / _SLOWEST_UPLOAD_BYTES_PER_S
        try:
            async with asyncio.timeout(limit_s):
                return await obstore.put_async(
                    writer, key, body, attributes={"Content-Type": content_type}, mode=mode, use_multipart=False
                )
        except TimeoutError:
            raise ObjectStoreUnavailable(f"{self._location} took no object within {limit_s:.0f} s") from None

    async def _open(self, key: str, unless_e_tag: str | None = None) -> "GetResult":
        """The head of an object and its body to come. unless_e_tag: raise `NotModifiedError` if it has this one."""
        reader = (await self._transfer_clients()).reader
        options: GetOptions = {} if unless_e_tag is None else {"if_none_match": unless_e_tag}
        return await obstore.get_async(reader, key, options=options)

    async def _describe(self, key: str, max_bytes: int | None = None) -> StoredObject:
        content = ContentHash()
        with self._translated_errors(key):
            found = await self._open(key)
            if max_bytes is not None and found.meta["size"] > max_bytes:
                raise self._too_large_error(key, max_bytes)
            async for chunk in found.stream(_CHUNK_BYTES):
                await content.update(chunk)
        return content.result()

    def _too_large_error(self, key: str, max_bytes: int) -> ObjectChanged:
        return ObjectChanged(
            f"{self._location} holds more than {max_bytes:,} bytes under {key}; no job wrote such a file"
        )

    def _changed_error(self, key: str, expected: StoredObject, size: int) -> ObjectChanged:
        found = f"{size:,}" if size <= expected.size else f"more than {expected.size:,}"
        return ObjectChanged(
            f"{self._location}: object {key} is not what was written: {expected.size:,} bytes of SHA-256 "
            f"{expected.sha256} were written, {found} of another SHA-256 are there"
        )

    def _list_keys(self, prefix: str) -> list[str]:
        with self._translated_errors():
            pages = self._s3.get_paginator("list_objects_v2").paginate(Bucket=self._config.bucket, Prefix=prefix)
            return [item["Key"] for page in pages for item in page.get("Contents", [])]

    def _check_bucket(self) -> None:
        with self._translated_errors():
            self._s3.head_bucket(Bucket=self._config.bucket)

    def _server_time(self) -> datetime | None:
        with self._translated_errors():
            try:
                answer = self._s3.head_bucket(Bucket=self._config.bucket)
            except ClientError as error:  # an error response has a Date too; S3 sends one if our clock is wrong
                answer = error.response
        headers = answer["ResponseMetadata"]["HTTPHeaders"]
        return parsedate_to_datetime(headers["date"]) if "date" in headers else None

    def _ensure_bucket(self) -> None:
        with self._translated_errors():
            try:
                self._s3.head_bucket(Bucket=self._config.bucket)
            except ClientError as error:
                if boto3_failure(error).status != 404:
                    raise
                self._create_bucket()

    def _create_bucket(self) -> None:
        params: dict[str, Any] = {"Bucket": self._config.bucket}
        if self._config.region != "us-east-1":  # S3 rejects it as a LocationConstraint
            params["CreateBucketConfiguration"] = {"LocationConstraint": self._config.region}
        try:
            self._s3.create_bucket(**params)
        except ClientError as error:
            if boto3_failure(error).code not in CREATED_BY_ANOTHER:
                raise

    @contextmanager
    def _translated_errors(self, key: str | None = None) -> Iterator[None]:
        """Turn the exceptions of both clients into step errors whose messages say what to do."""
        try:
            yield
        except ClientError as error:
            raise step_error(boto3_failure(error), self._location, key) from error
        except (BaseError, FileNotFoundError) as error:  # the latter is obstore's for 404
            raise step_error(obstore_failure(error), self._location, key) from error
        except (BotoCoreError, OSError) as error:
            raise ObjectStoreUnavailable(f"{self._location} can't be reached: {error}") from error


async def _read_body(found: "GetResult") -> bytes:
    """The body of an object. A long one is copied in chunks: one copy would hold the event loop."""
    if found.meta["size"] <= _CHUNK_BYTES:
        return (await found.bytes_async()).to_bytes()
    chunks = [bytes(chunk) async for chunk in found.stream(_CHUNK_BYTES)]
    # In a thread: joining bytes releases the GIL.
    return await asyncio.to_thread(b"".join, chunks)
