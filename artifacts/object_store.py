"""The object store: every image is written once and never overwritten.

    put ──If-None-Match: *──▶ 200  the object is written
                              412  another attempt has written it: read that object and adopt it
                              409  another attempt is writing it now: try again

A runner that lost its lease can therefore neither overwrite an image nor leave one that no event names.
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

READY_TIMEOUT_S = 5.0
MAX_OBJECT_BYTES = 2**29
"""Limit of a read whose expected size is unknown. No file of a job is larger."""

_CHUNK_BYTES = 2**20
CONFLICT_PAUSES_S = (0.05, 0.1, 0.2, 0.4, 0.8)
CREATED_BY_ANOTHER = {"BucketAlreadyOwnedByYou", "BucketAlreadyExists", "OperationAborted"}


class S3Config(msgspec.Struct, frozen=True):
    """The object store's address and credentials. endpoint: None is AWS. public_endpoint: for presigned URLs."""

    endpoint: str | None
    access_key: str
    secret_key: str
    bucket: str = "dreamforge"
    region: str = "us-east-1"
    public_endpoint: str | None = None

    def __repr__(self) -> str:
        """The configuration without its keys, which must not appear in tracebacks and logs."""
        return f"S3Config(endpoint={self.endpoint!r}, bucket={self.bucket!r}, region={self.region!r}, keys=***)"


class StoredObject(msgspec.Struct, frozen=True):
    """Size in bytes and SHA-256 (lower-case hex) of an object's content."""

    size: int
    sha256: str


class ObjectStore:
    """One bucket. boto3 blocks, so its calls run in a thread pool of this object."""

    def __init__(self, config: S3Config, *, threads: int = 8) -> None:
        self._config = config
        self._threads = threads
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="objects")
        self._clients: dict[str | None, Any] = {}
        self._clients_lock = threading.Lock()

    async def ensure_bucket(self) -> None:
        """Create the bucket if it does not exist. Safe to call twice, and from two processes at once."""
        await self._in_thread(self._ensure_bucket)

    async def put(self, key: str, body: bytes, content_type: str) -> StoredObject:
        """Write an object, or adopt an existing one with the same key. Returns what the store now holds.

        Raises `ObjectChanged` if the existing object is larger than `MAX_OBJECT_BYTES`.
        """
        return await self._in_thread(partial(self._put, key, body, content_type))

    async def replace(self, key: str, body: bytes, content_type: str) -> None:
        """Overwrite an object. Only erasure does this."""
        await self._in_thread(partial(self._replace, key, body, content_type))

    async def get(self, key: str, *, max_bytes: int = MAX_OBJECT_BYTES) -> bytes:
        """Read an object. Raises `ObjectMissing`; `ObjectChanged` if it has more than `max_bytes` bytes."""
        return await self._in_thread(partial(self._get, key, max_bytes))

    async def get_verified(self, key: str, expected: StoredObject) -> bytes:
        """Read an object that must have this size and hash. Raises `ObjectMissing` or `ObjectChanged`.

        It never reads more bytes than expected.
        """
        return await self._in_thread(partial(self._get_verified, key, expected))

    async def list_keys(self, prefix: str) -> list[str]:
        """The keys of all objects with a prefix, in order."""
        return await self._in_thread(partial(self._list_keys, prefix))

    async def describe(self, key: str) -> StoredObject:
        """Read an object of any size; returns its size and hash. Raises `ObjectMissing`."""
        return await self._in_thread(partial(self._describe, key))

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

        It does no I/O and takes about 0.3 ms. The first call creates the client, which takes about 100 ms: on an event
        loop use `presign_many`.
        """
        signer = self._client(self._config.public_endpoint or self._config.endpoint)
        params = {"Bucket": self._config.bucket, "Key": key}
        # The signature includes the method.
        action = "head_object" if head else "get_object"
        url: str = signer.generate_presigned_url(action, Params=params, ExpiresIn=expires_s)
        return url

    async def presign_many(self, keys: Iterable[str], expires_s: int, *, head: bool = False) -> list[str]:
        """Return the URLs of many objects, in the order of their keys."""
        ordered = list(keys)
        return await self._in_thread(lambda: [self.presign(key, expires_s, head=head) for key in ordered])

    async def close(self) -> None:
        """Close the connections; running calls end by their own timeouts. A second call does nothing."""
        self._executor.shutdown(wait=False, cancel_futures=True)
        for client in self._clients.values():
            client.close()

    async def _in_thread(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, call)

    def _client(self, endpoint: str | None) -> Any:
        with self._clients_lock:
            if endpoint not in self._clients:
                self._clients[endpoint] = _make_client(self._config, endpoint, self._threads)
            return self._clients[endpoint]

    @property
    def _s3(self) -> Any:
        return self._client(self._config.endpoint)

    @property
    def _location(self) -> str:
        return f"bucket {self._config.bucket!r} at {self._config.endpoint or 'AWS'}"

    def _put(self, key: str, body: bytes, content_type: str) -> StoredObject:
        with self._translated_errors(key):
            if self._put_if_absent(key, body, content_type):
                return stored_object(body)
        return self._describe(key, MAX_OBJECT_BYTES)

    def _replace(self, key: str, body: bytes, content_type: str) -> None:
        with self._translated_errors(key):
            self._s3.put_object(Bucket=self._config.bucket, Key=key, Body=body, ContentType=content_type)

    def _put_if_absent(self, key: str, body: bytes, content_type: str) -> bool:
        """Write the object if the key does not exist. Returns whether it was written."""
        params = {"Bucket": self._config.bucket, "Key": key, "ContentType": content_type, "IfNoneMatch": "*"}
        for pause_s in CONFLICT_PAUSES_S:
            try:
                self._s3.put_object(Body=body, **params)
            except ClientError as error:
                if _http_status(error) == 412:
                    return False
                if _http_status(error) != 409:
                    raise
                time.sleep(pause_s)
            else:
                return True
        raise ObjectStoreUnavailable(f"{self._location}: other attempts kept writing {key}; try again")

    def _get(self, key: str, max_bytes: int) -> bytes:
        with self._translated_errors(key), self._open(key) as stream:
            body: bytes = stream.read(max_bytes + 1)
        if len(body) > max_bytes:
            raise self._too_large_error(key, max_bytes)
        return body

    def _too_large_error(self, key: str, max_bytes: int) -> ObjectChanged:
        return ObjectChanged(
            f"{self._location} holds more than {max_bytes:,} bytes under {key}; no job wrote such a file"
        )

    def _get_verified(self, key: str, expected: StoredObject) -> bytes:
        with self._translated_errors(key), self._open(key) as stream:
            body: bytes = stream.read(expected.size + 1)
        actual = stored_object(body)
        if actual != expected:
            size = f"{actual.size:,}" if actual.size <= expected.size else f"more than {expected.size:,}"
            raise ObjectChanged(
                f"{self._location}: object {key} is not what was written: {expected.size:,} bytes of SHA-256 "
                f"{expected.sha256} were written, {size} of another SHA-256 are there"
            )
        return body

    def _describe(self, key: str, max_bytes: int | None = None) -> StoredObject:
        size, digest = 0, hashlib.sha256()
        with self._translated_errors(key), self._open(key) as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                size += len(chunk)
                digest.update(chunk)
                if max_bytes is not None and size > max_bytes:
                    raise self._too_large_error(key, max_bytes)
        return StoredObject(size, digest.hexdigest())

    def _open(self, key: str) -> closing[Any]:
        return closing(self._s3.get_object(Bucket=self._config.bucket, Key=key)["Body"])

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
                if _http_status(error) != 404:
                    raise
                self._create_bucket()

    def _create_bucket(self) -> None:
        params: dict[str, Any] = {"Bucket": self._config.bucket}
        if self._config.region != "us-east-1":  # S3 rejects it as a LocationConstraint
            params["CreateBucketConfiguration"] = {"LocationConstraint": self._config.region}
        try:
            self._s3.create_bucket(**params)
        except ClientError as error:
            if _s3_error_code(error) not in CREATED_BY_ANOTHER:
                raise

    @contextmanager
    def _translated_errors(self, key: str | None = None) -> Iterator[None]:
        """Turn boto3's exceptions into step errors whose messages say what to do."""
        try:
            yield
        except ClientError as error:
            raise self._translate_client_error(error, key) from error
        except (BotoCoreError, OSError) as error:
            raise ObjectStoreUnavailable(f"{self._location} can't be reached: {error}") from error

    def _translate_client_error(self, error: ClientError, key: str | None) -> ObjectMissing | ObjectStoreUnavailable:
        status, code = _http_status(error), _s3_error_code(error)
        if status == 404 and (key is None or code == "NoSuchBucket"):
            return ObjectStoreUnavailable(f"{self._location} does not exist; create it, or correct DF_S3_BUCKET")
        if status == 404:
            return ObjectMissing(f"{self._location} has no object {key}; it expired or was deleted")
        if status in {401, 403}:
            return ObjectStoreUnavailable(
                f"{self._location} denies access ({code}); check DF_S3_ACCESS_KEY, DF_S3_SECRET_KEY, its policy, and "
                "that both clocks are right"
            )
        return ObjectStoreUnavailable(f"{self._location} answered {status}: {error}")


def _http_status(error: ClientError) -> int:
    status: int = error.response["ResponseMetadata"]["HTTPStatusCode"]
    return status


def _s3_error_code(error: ClientError) -> str:
    code: str = error.response["Error"]["Code"]
    return code


def stored_object(body: bytes) -> StoredObject:
    """Size and hash of an object with this content."""
    return StoredObject(len(body), hashlib.sha256(body).hexdigest())


def _make_client(config: S3Config, endpoint: str | None, connections: int) -> Any:
    """Create a client that ignores the AWS_* variables and profiles of this machine."""
    session_vars = {
        name: (None, None, default, kind) for name, (_, _, default, kind) in Session.SESSION_VARIABLES.items()
    }
    for file in ("config_file", "credentials_file"):
        session_vars[file] = (None, None, os.devnull, None)
    session = boto3.session.Session(botocore_session=Session(session_vars=session_vars))
    return session.client(
        "s3",
        endpoint_url=endpoint,
        region_name=config.region,
        aws_access_key_id=config.access_key,
        aws_secret_access_key=config.secret_key,
        config=Config(
            signature_version="s3v4",
            s3={"addressing_style": "path", "us_east_1_regional_endpoint": "regional"},
            # Newer boto3 sends checksum trailers by default; several S3 servers reject them.
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
