"""The object store: written once, adopted by whoever comes later, fetched by anyone with a presigned URL."""

import asyncio
import hashlib
import socket
import threading
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar
from urllib.error import HTTPError
from urllib.request import ProxyHandler, build_opener
from uuid import uuid4

import msgspec
import pytest

from artifacts import object_store
from artifacts.errors import ObjectChanged, ObjectMissing, ObjectStoreUnavailable
from artifacts.object_store import ObjectStore, S3Config, StoredObject

PNG = "image/png"


@pytest.fixture
async def store(s3_config: S3Config) -> AsyncIterator[ObjectStore]:
    store = ObjectStore(s3_config)
    await store.ensure_bucket()
    yield store
    await store.close()


@pytest.fixture
def key() -> str:
    return f"tests/{uuid4()}.png"


def stored(body: bytes) -> StoredObject:
    return StoredObject(len(body), hashlib.sha256(body).hexdigest())


def fetch(url: str) -> tuple[bytes, str]:
    """Fetch a URL as anyone would, without credentials."""
    with build_opener(ProxyHandler({})).open(url, timeout=10) as answer:
        return answer.read(), answer.headers["Content-Type"]


async def test_reads_back_what_was_put(store: ObjectStore, key: str) -> None:
    body = bytes(range(256)) * 4096
    assert await store.put(key, body, PNG) == stored(body)
    assert await store.get(key) == body


async def test_a_second_put_adopts_what_lies_there(store: ObjectStore, key: str) -> None:
    """A zombie can't overwrite what was recorded, and learns the size and hash of what is really there."""
    await store.put(key, b"first", PNG)
    assert await store.put(key, b"second, and longer", PNG) == stored(b"first")
    assert await store.get(key) == b"first"


async def test_of_many_writers_at_once_one_wins_and_all_agree(
    s3_config: S3Config, store: ObjectStore, key: str
) -> None:
    other = ObjectStore(s3_config)
    bodies = [bytes([number]) * 5000 for number in range(12)]
    answers = await asyncio.gather(*((store, other)[n % 2].put(key, body, PNG) for n, body in enumerate(bodies)))
    await other.close()
    assert set(answers) == {stored(await store.get(key))}


async def test_a_changed_object_is_rejected_and_no_more_of_it_read_than_was_written(
    store: ObjectStore, key: str
) -> None:
    body = b"pixels"
    await store.put(key, body, PNG)
    assert await store.get_verified(key, stored(body)) == body
    for changed in (b"pixelz", b"pixel", b"", body + bytes(32 * 2**20)):
        await store.replace(key, changed, PNG)
        tracemalloc.start()
        with pytest.raises(ObjectChanged, match=key):
            await store.get_verified(key, stored(body))
        with suppress(ObjectChanged):
            await store.get(key, max_bytes=100)
        assert await store.describe(key) == stored(changed)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 8 * 2**20
    with pytest.raises(ObjectChanged, match="more than 100 bytes"):
        await store.get(key, max_bytes=100)


async def test_what_is_too_large_is_not_adopted(store: ObjectStore, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given an object that is larger than any file of a job, then a put does not read it to its end."""
    await store.put(key, bytes(4 * 2**20), PNG)
    monkeypatch.setattr(object_store, "MAX_OBJECT_BYTES", 2**20)
    with pytest.raises(ObjectChanged, match=f"more than 1,048,576 bytes under {key}"):
        await store.put(key, b"pixels", PNG)


async def test_a_missing_object_is_named(store: ObjectStore, key: str) -> None:
    with pytest.raises(ObjectMissing, match=key):
        await store.get(key)


async def test_anyone_fetches_a_presigned_url(store: ObjectStore, key: str) -> None:
    await store.put(key, b"pixels", PNG)
    assert await asyncio.to_thread(fetch, store.presign(key, 300)) == (b"pixels", PNG)


async def test_an_object_is_not_public_without_the_signature(store: ObjectStore, key: str) -> None:
    await store.put(key, b"pixels", PNG)
    with pytest.raises(HTTPError, match="403") as rejected:
        await asyncio.to_thread(fetch, store.presign(key, 300).partition("?")[0])
    rejected.value.close()


async def test_presigns_many_in_order(store: ObjectStore) -> None:
    urls = await store.presign_many((f"many/{number}.png" for number in range(5)), 300)
    assert [url.partition("?")[0].rpartition("/")[2] for url in urls] == [f"{number}.png" for number in range(5)]
    assert all("X-Amz-Expires=300" in url for url in urls)


async def test_presigns_for_the_public_endpoint(s3_config: S3Config) -> None:
    """Clients fetch under another name than the runners write to."""
    store = ObjectStore(msgspec.structs.replace(s3_config, public_endpoint="https://pictures.example"))
    assert store.presign("a/b.png", 300).startswith(f"https://pictures.example/{s3_config.bucket}/a/b.png?X-Amz-")
    await store.close()


async def test_creates_the_bucket_once_whoever_asks(s3_config: S3Config) -> None:
    """Two processes may start at once, and each starts again."""
    config = msgspec.structs.replace(s3_config, bucket=f"test-{uuid4()}")
    stores = [ObjectStore(config) for _ in range(4)]
    with pytest.raises(ObjectStoreUnavailable, match=f"{config.bucket}.* does not exist; create it"):
        await stores[0].check_ready()
    await asyncio.gather(*(store.ensure_bucket() for store in stores))
    await stores[0].ensure_bucket()
    await asyncio.to_thread(stores[1]._create_bucket)  # as one does who looked before the other had made it
    for store in stores:
        await store.check_ready()
    await asyncio.to_thread(stores[0]._s3.delete_bucket, Bucket=config.bucket)
    for store in stores:
        await store.close()


async def test_a_wrong_key_is_the_operators_to_mend(s3_config: S3Config, key: str) -> None:
    wrong = ObjectStore(msgspec.structs.replace(s3_config, secret_key="wrong"))
    for call in (wrong.check_ready(), wrong.put(key, b"", PNG), wrong.get(key), wrong.ensure_bucket()):
        with pytest.raises(ObjectStoreUnavailable, match=r"denies access .* check DF_S3_ACCESS_KEY"):
            await call
    await wrong.close()


async def test_a_dead_endpoint_is_told_soon(s3_config: S3Config, key: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused
        store = ObjectStore(msgspec.structs.replace(s3_config, endpoint=f"http://127.0.0.1:{taken.getsockname()[1]}"))
        for call in (store.check_ready(), store.put(key, b"", PNG), store.get(key), store.ensure_bucket()):
            with pytest.raises(ObjectStoreUnavailable, match="can't be reached"):
                await asyncio.wait_for(call, 15)
        await store.close()


class Script(BaseHTTPRequestHandler):
    """An S3 server that answers PUT with the statuses that it was given, one after the other."""

    protocol_version = "HTTP/1.1"
    statuses: ClassVar[list[int]]

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(self.statuses.pop(0))
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args: object) -> None:
        """Keep the test's output clean."""


@pytest.fixture
def scripted(s3_config: S3Config) -> Iterator[tuple[S3Config, list[int]]]:
    """A server whose answers the test writes; real ones give them too rarely to wait for."""
    Script.statuses = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Script) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,)).start()
        yield msgspec.structs.replace(s3_config, endpoint=f"http://127.0.0.1:{server.server_port}"), Script.statuses
        server.shutdown()


async def test_tries_again_while_another_put_is_under_way(scripted: tuple[S3Config, list[int]], key: str) -> None:
    config, statuses = scripted
    statuses += [409, 409, 200]
    store = ObjectStore(config)
    assert await store.put(key, b"pixels", PNG) == stored(b"pixels")
    assert statuses == []
    await store.close()


@pytest.mark.parametrize("status", [500, 503, 501, 400])
async def test_a_failing_server_is_worth_another_attempt(
    scripted: tuple[S3Config, list[int]], key: str, status: int
) -> None:
    config, statuses = scripted
    statuses += [status] * 5
    store = ObjectStore(config)
    with pytest.raises(ObjectStoreUnavailable, match=f"answered {status}") as raised:
        await store.put(key, b"pixels", PNG)
    assert raised.value.retryable
    await store.close()


async def test_foreign_settings_of_aws_and_proxies_do_not_matter(
    s3_config: S3Config, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere = "http://127.0.0.1:9"
    for name in ("http_proxy", "https_proxy", "all_proxy", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.setenv(name, nowhere)
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_RETRY_MODE"):
        monkeypatch.setenv(name, "foreign")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent/config")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "many")
    monkeypatch.setenv("AWS_USE_FIPS_ENDPOINT", "true")
    store = ObjectStore(s3_config)
    await store.ensure_bucket()
    assert await store.put(key, b"pixels", PNG) == stored(b"pixels")
    await store.close()


async def test_closes_twice(s3_config: S3Config) -> None:
    store = ObjectStore(s3_config)
    await store.check_ready()
    await store.close()
    await store.close()


def test_shows_no_keys(s3_config: S3Config) -> None:
    assert s3_config.secret_key not in repr(s3_config)
