"""The object store: every picture is written once, and never overwritten.

    put ──If-None-Match: *──▶ 200  ours is stored
                              412  another attempt was first: read its object back and adopt it
                              409  another attempt is writing right now: try again

So a runner that lost its lease can neither overwrite a picture nor leave one that no event names.
"""

import asyncio
import hashlib
import ipaddress
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from datetime import datetime
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any, TypeVar
from urllib.parse import urlsplit

import boto3
import msgspec
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from botocore.session import Session

from artifacts.errors import ObjectChanged, ObjectMissing, ObjectStoreUnavailable

T = TypeVar("T")

READY_S = 5.0
MOST = 2**29
"""Of bytes that are read at once where it is not known how many were written: more than any file of a job has."""

_PART = 2**20
CONFLICT_PAUSES_S = (0.05, 0.1, 0.2, 0.4, 0.8)
CREATED_BY_ANOTHER = {"BucketAlreadyOwnedByYou", "BucketAlreadyExists", "OperationAborted"}


class S3Config(msgspec.Struct, frozen=True):
    """Where the objects lie. Without an endpoint that is AWS; clients fetch from the public one, if it differs."""

    endpoint: str | None
    access_key: str
    secret_key: str
    bucket: str = "dreamforge"
    region: str = "us-east-1"
    public_endpoint: str | None = None

    def __repr__(self) -> str:
        """The configuration without its keys, which would else end up in tracebacks and logs."""
        return f"S3Config(endpoint={self.endpoint!r}, bucket={self.bucket!r}, region={self.region!r}, keys=***)"


class StoredObject(msgspec.Struct, frozen=True):
    """What really lies under a key; the hash is lower-case hex."""

    size: int
    sha256: str


class ObjectStore:
    """One bucket. boto3 blocks, so its calls run in threads of this store's own."""

    def __init__(self, config: S3Config, *, threads: int = 8) -> None:
        self._config = config
        self._threads = threads
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="objects")
        self._clients: dict[str | None, Any] = {}
        self._making_client = threading.Lock()

    async def ensure_bucket(self) -> None:
        """Create the bucket unless it is there. Safe to call twice, and from two processes at once."""
        await self._in_thread(self._ensure_bucket)

    async def put(self, key: str, body: bytes, content_type: str) -> StoredObject:
        """Write an object, or adopt the one that lies under the key already; return what lies there now.

        Raise `ObjectChanged` where that is larger than any file of a job.
        """
        return await self._in_thread(partial(self._put, key, body, content_type))

    async def replace(self, key: str, body: bytes, content_type: str) -> None:
        """Write over an object: for erasure alone, everything else leaves what lies there."""
        await self._in_thread(partial(self._replace, key, body, content_type))

    async def get(self, key: str, *, most: int = MOST) -> bytes:
        """Read an object of at most so many bytes; raise `ObjectMissing` if there is none, `ObjectChanged` if more."""
        return await self._in_thread(partial(self._get, key, most))

    async def verified(self, key: str, written: StoredObject) -> bytes:
        """Read an object that must be the one that was written; raise `ObjectMissing` or `ObjectChanged` otherwise.

        No more is ever read than was written.
        """
        return await self._in_thread(partial(self._verified, key, written))

    async def keys(self, prefix: str) -> list[str]:
        """What lies under a prefix, in order."""
        return await self._in_thread(partial(self._keys, prefix))

    async def described(self, key: str) -> StoredObject:
        """Read an object of any size, and tell what it really is; raise `ObjectMissing` if there is none."""
        return await self._in_thread(partial(self._describe, key))

    async def ready(self) -> None:
        """Raise `ObjectStoreUnavailable` unless the bucket can be reached, soon."""
        try:
            async with asyncio.timeout(READY_S):
                await self._in_thread(self._require_bucket)
        except TimeoutError:
            raise ObjectStoreUnavailable(f"{self._place} gave no answer within {READY_S:g} s") from None

    async def clock(self) -> datetime | None:
        """The store's time, to the second; None if it does not tell."""
        return await self._in_thread(self._clock)

    def presign(self, key: str, expires_s: int, *, head: bool = False) -> str:
        """Return a URL that anyone can fetch the object from, for so many seconds; with `head`, by HEAD alone.

        Takes a third of a millisecond, without any I/O, but the first call makes the client, which takes three
        hundred times as long: on an event loop prefer `presign_many`.
        """
        signer = self._client(self._config.public_endpoint or self._config.endpoint)
        params = {"Bucket": self._config.bucket, "Key": key}
        # The method is signed with the rest.
        action = "head_object" if head else "get_object"
        url: str = signer.generate_presigned_url(action, Params=params, ExpiresIn=expires_s)
        return url

    async def presign_many(self, keys: Iterable[str], expires_s: int, *, head: bool = False) -> list[str]:
        """Return the URLs of many objects, in the order of their keys."""
        wanted = list(keys)
        return await self._in_thread(lambda: [self.presign(key, expires_s, head=head) for key in wanted])

    async def close(self) -> None:
        """Close the connections; calls under way end with their own timeouts. A second call does nothing."""
        self._executor.shutdown(wait=False, cancel_futures=True)
        for client in self._clients.values():
            client.close()

    async def _in_thread(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, call)

    def _client(self, endpoint: str | None) -> Any:
        with self._making_client:
            if endpoint not in self._clients:
                self._clients[endpoint] = _make_client(self._config, endpoint, self._threads)
            return self._clients[endpoint]

    @property
    def _s3(self) -> Any:
        return self._client(self._config.endpoint)

    @property
    def _place(self) -> str:
        return f"bucket {self._config.bucket!r} at {self._config.endpoint or 'AWS'}"

    def _put(self, key: str, body: bytes, content_type: str) -> StoredObject:
        with self._explained(key):
            if self._put_new(key, body, content_type):
                return described(body)
        return self._describe(key, MOST)

    def _replace(self, key: str, body: bytes, content_type: str) -> None:
        with self._explained(key):
            self._s3.put_object(Bucket=self._config.bucket, Key=key, Body=body, ContentType=content_type)

    def _put_new(self, key: str, body: bytes, content_type: str) -> bool:
        """Write the object unless one lies there already; tell whether it was written."""
        wanted = {"Bucket": self._config.bucket, "Key": key, "ContentType": content_type, "IfNoneMatch": "*"}
        for pause_s in CONFLICT_PAUSES_S:
            try:
                self._s3.put_object(Body=body, **wanted)
            except ClientError as error:
                if _status(error) == 412:
                    return False
                if _status(error) != 409:
                    raise
                time.sleep(pause_s)
            else:
                return True
        raise ObjectStoreUnavailable(f"{self._place}: others kept writing {key} at the same time; try again")

    def _get(self, key: str, most: int) -> bytes:
        with self._explained(key), self._opened(key) as opened:
            body: bytes = opened.read(most + 1)
        if len(body) > most:
            raise self._too_large(key, most)
        return body

    def _too_large(self, key: str, most: int) -> ObjectChanged:
        return ObjectChanged(f"{self._place} holds more than {most:,} bytes under {key}; that is no file of ours")

    def _verified(self, key: str, written: StoredObject) -> bytes:
        with self._explained(key), self._opened(key) as opened:
            body: bytes = opened.read(written.size + 1)
        found = described(body)
        if found != written:
            size = f"{found.size:,}" if found.size <= written.size else f"more than {written.size:,}"
            raise ObjectChanged(
                f"{self._place} does not hold under {key} what was written: {written.size:,} bytes of SHA-256 "
                f"{written.sha256} were, {size} of another are there"
            )
        return body

    def _describe(self, key: str, most: int | None = None) -> StoredObject:
        size, digest = 0, hashlib.sha256()
        with self._explained(key), self._opened(key) as opened:
            while part := opened.read(_PART):
                size += len(part)
                digest.update(part)
                if most is not None and size > most:
                    raise self._too_large(key, most)
        return StoredObject(size, digest.hexdigest())

    def _opened(self, key: str) -> closing[Any]:
        return closing(self._s3.get_object(Bucket=self._config.bucket, Key=key)["Body"])

    def _keys(self, prefix: str) -> list[str]:
        with self._explained():
            pages = self._s3.get_paginator("list_objects_v2").paginate(Bucket=self._config.bucket, Prefix=prefix)
            return [found["Key"] for page in pages for found in page.get("Contents", [])]

    def _require_bucket(self) -> None:
        with self._explained():
            self._s3.head_bucket(Bucket=self._config.bucket)

    def _clock(self) -> datetime | None:
        with self._explained():
            try:
                answer = self._s3.head_bucket(Bucket=self._config.bucket)
            except ClientError as error:  # a refusal tells the time as well, and S3 refuses for a clock that is far off
                answer = error.response
        headers = answer["ResponseMetadata"]["HTTPHeaders"]
        return parsedate_to_datetime(headers["date"]) if "date" in headers else None

    def _ensure_bucket(self) -> None:
        with self._explained():
            try:
                self._s3.head_bucket(Bucket=self._config.bucket)
            except ClientError as error:
                if _status(error) != 404:
                    raise
                self._create_bucket()

    def _create_bucket(self) -> None:
        wanted: dict[str, Any] = {"Bucket": self._config.bucket}
        if self._config.region != "us-east-1":  # which S3 refuses to be told
            wanted["CreateBucketConfiguration"] = {"LocationConstraint": self._config.region}
        try:
            self._s3.create_bucket(**wanted)
        except ClientError as error:
            if _code(error) not in CREATED_BY_ANOTHER:
                raise

    @contextmanager
    def _explained(self, key: str | None = None) -> Iterator[None]:
        """Turn what boto3 raises into the step errors, and say what to do."""
        try:
            yield
        except ClientError as error:
            raise self._explanation(error, key) from error
        except (BotoCoreError, OSError) as error:
            raise ObjectStoreUnavailable(f"{self._place} can't be reached: {error}") from error

    def _explanation(self, error: ClientError, key: str | None) -> ObjectMissing | ObjectStoreUnavailable:
        status, code = _status(error), _code(error)
        if status == 404 and (key is None or code == "NoSuchBucket"):
            return ObjectStoreUnavailable(f"{self._place} does not exist; create it, or correct DF_S3_BUCKET")
        if status == 404:
            return ObjectMissing(f"{self._place} holds no object {key}; it expired, or was removed")
        if status in {401, 403}:
            return ObjectStoreUnavailable(
                f"{self._place} denies access ({code}); check DF_S3_ACCESS_KEY, DF_S3_SECRET_KEY, its policy, and "
                "that both clocks are right"
            )
        return ObjectStoreUnavailable(f"{self._place} answered {status}: {error}")


def _status(error: ClientError) -> int:
    status: int = error.response["ResponseMetadata"]["HTTPStatusCode"]
    return status


def _code(error: ClientError) -> str:
    code: str = error.response["Error"]["Code"]
    return code


def described(body: bytes) -> StoredObject:
    """What an object of these bytes is."""
    return StoredObject(len(body), hashlib.sha256(body).hexdigest())


def _make_client(config: S3Config, endpoint: str | None, connections: int) -> Any:
    """Make a client that obeys the configuration alone, whatever AWS_* variables and profiles this machine has."""
    from_nowhere = {
        name: (None, None, default, kind) for name, (_, _, default, kind) in Session.SESSION_VARIABLES.items()
    }
    for file in ("config_file", "credentials_file"):
        from_nowhere[file] = (None, None, os.devnull, None)
    session = boto3.session.Session(botocore_session=Session(session_vars=from_nowhere))
    return session.client(
        "s3",
        endpoint_url=endpoint,
        region_name=config.region,
        aws_access_key_id=config.access_key,
        aws_secret_access_key=config.secret_key,
        config=Config(
            signature_version="s3v4",
            s3={"addressing_style": "path", "us_east_1_regional_endpoint": "regional"},
            # Newer boto3 sends checksum trailers by default, which several S3 servers refuse.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            ignore_configured_endpoint_urls=True,
            proxies={} if _is_loopback(endpoint) else None,
            retries={"mode": "standard", "total_max_attempts": 2},
            connect_timeout=3,
            read_timeout=10,
            max_pool_connections=connections,
            tcp_keepalive=True,
        ),
    )


def _is_loopback(endpoint: str | None) -> bool:
    host = urlsplit(endpoint or "").hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
