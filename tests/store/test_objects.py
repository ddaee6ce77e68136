"""The object store: written once, adopted by whoever comes later, fetched by anyone with a presigned URL."""

import asyncio
import hashlib
import os
import socket
import threading
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar, NamedTuple
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener
from uuid import uuid4

import msgspec
import pytest

from artifacts import object_store, s3_clients
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


def fetch(url: str, method: str = "GET") -> tuple[bytes, str]:
    """Fetch a URL as anyone would, without credentials."""
    with build_opener(ProxyHandler({})).open(Request(url, method=method), timeout=10) as answer:
        return answer.read(), answer.headers["Content-Type"]


async def test_reads_back_what_was_put(store: ObjectStore, key: str) -> None:
    body = bytes(range(256)) * 4096
    assert await store.put(key, body, PNG) == stored(body)
    assert await store.get(key) == body


async def test_a_long_body_is_read_back_whole(s3_config: S3Config, store: ObjectStore, key: str) -> None:
    """Given a body that is read in chunks."""
    body, other = bytes(range(251)) * 20_000, ObjectStore(s3_config)
    await store.put(key, body, PNG)
    assert await store.get(key) == body
    assert await other.get_verified(key, stored(body)) == body
    await other.close()


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


async def test_a_key_with_special_characters_is_presigned(store: ObjectStore, key: str) -> None:
    strange = f"{key}/a b+c=(é)~'*!&?#%41.png"
    await store.put(strange, b"pixels", PNG)
    assert await store.list_keys(key) == [strange]
    assert await asyncio.to_thread(fetch, store.presign(strange, 300)) == (b"pixels", PNG)
    assert await asyncio.to_thread(fetch, (await store.presign_many([strange], 300))[0]) == (b"pixels", PNG)


async def test_a_url_for_head_is_for_nothing_else(store: ObjectStore, key: str) -> None:
    await store.put(key, b"pixels", PNG)
    head = await asyncio.to_thread(fetch, store.presign(key, 300, head=True), "HEAD")
    assert head == (b"", PNG)
    with pytest.raises(HTTPError, match="403") as rejected:
        await asyncio.to_thread(fetch, store.presign(key, 300, head=True))
    rejected.value.close()


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


class Answer(NamedTuple):
    """A response. size: announce so many bytes instead of the body, and send them while the client reads."""

    status: int
    body: bytes = b""
    size: int | None = None


HANG = Answer(0)
"""The server says nothing until the test is over."""


class Script(BaseHTTPRequestHandler):
    """An S3 server that gives the answers that it was given, one after the other."""

    protocol_version = "HTTP/1.1"
    answers: ClassVar[list[Answer]]
    released: ClassVar[threading.Event]
    sent_bytes: ClassVar[int]

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(Script.answers.pop(0))

    def do_GET(self) -> None:
        self._answer(Script.answers.pop(0))

    def _answer(self, answer: Answer) -> None:
        if answer == HANG:
            self.released.wait(60)
            self.close_connection = True
            return
        self.send_response(answer.status)
        self.send_header("Content-Length", str(len(answer.body) if answer.size is None else answer.size))
        self.send_header("ETag", '"of-the-script"')
        self.send_header("Last-Modified", self.date_time_string())
        self.end_headers()
        self.wfile.write(answer.body)
        with suppress(OSError):  # the client has read enough
            for _ in range((answer.size or 0) // 2**16):
                self.wfile.write(bytes(2**16))
                Script.sent_bytes += 2**16

    def handle_one_request(self) -> None:
        with suppress(ConnectionError):
            super().handle_one_request()

    def log_message(self, *args: object) -> None:
        """Keep the test's output clean."""


@pytest.fixture
def scripted(s3_config: S3Config) -> Iterator[tuple[S3Config, list[Answer]]]:
    """A server whose answers the test writes; real ones give them too rarely to wait for."""
    Script.answers, Script.released, Script.sent_bytes = [], threading.Event(), 0
    with ThreadingHTTPServer(("127.0.0.1", 0), Script) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,)).start()
        yield msgspec.structs.replace(s3_config, endpoint=f"http://127.0.0.1:{server.server_port}"), Script.answers
        Script.released.set()
        server.shutdown()


async def test_tries_again_while_another_put_is_under_way(scripted: tuple[S3Config, list[Answer]], key: str) -> None:
    config, answers = scripted
    answers += map(Answer, [409, 409, 200])
    store = ObjectStore(config)
    assert await store.put(key, b"pixels", PNG) == stored(b"pixels")
    assert answers == []
    await store.close()


async def test_adopts_what_the_other_put_has_written(scripted: tuple[S3Config, list[Answer]], key: str) -> None:
    """Given a conflict with a put that then succeeds, then its object is adopted."""
    config, answers = scripted
    answers += [Answer(409), Answer(412), Answer(200, b"of another")]
    store = ObjectStore(config)
    assert await store.put(key, b"pixels", PNG) == stored(b"of another")
    assert answers == []
    await store.close()


async def test_conflicts_without_end_are_worth_another_attempt(
    scripted: tuple[S3Config, list[Answer]], key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_store, "CONFLICT_PAUSES_S", (0.0, 0.0))
    config, answers = scripted
    answers += map(Answer, [409, 409])
    store = ObjectStore(config)
    with pytest.raises(ObjectStoreUnavailable, match=f"other attempts kept writing {key}; try again"):
        await store.put(key, b"pixels", PNG)
    await store.close()


@pytest.mark.parametrize("status", [500, 503, 501, 400])
async def test_a_failing_server_is_worth_another_attempt(
    scripted: tuple[S3Config, list[Answer]], key: str, status: int
) -> None:
    config, answers = scripted
    answers += [Answer(status)] * 5
    store = ObjectStore(config)
    with pytest.raises(ObjectStoreUnavailable, match=f"answered {status}") as raised:
        await store.put(key, b"pixels", PNG)
    assert raised.value.retryable
    assert len(answers) >= 3  # two tries at most
    await store.close()


@pytest.mark.parametrize(
    ("status", "code", "error", "message"),
    [
        (404, "NoSuchKey", ObjectMissing, "has no object {key}; it expired or was deleted"),
        (404, "NoSuchBucket", ObjectStoreUnavailable, "does not exist; create it, or correct DF_S3_BUCKET"),
        (403, "AccessDenied", ObjectStoreUnavailable, r"denies access \(AccessDenied\); check DF_S3_ACCESS_KEY"),
        (401, "Unauthorized", ObjectStoreUnavailable, r"denies access \(Unauthorized\); check DF_S3_ACCESS_KEY"),
        (301, "PermanentRedirect", ObjectStoreUnavailable, "is in another region; correct DF_S3_REGION"),
        (409, "OperationAborted", ObjectStoreUnavailable, "answered 409: .*OperationAborted"),
        (500, "InternalError", ObjectStoreUnavailable, "answered 500: .*InternalError"),
    ],
)
async def test_an_error_of_the_server_says_what_to_do(
    scripted: tuple[S3Config, list[Answer]], key: str, status: int, code: str, error: type[Exception], message: str
) -> None:
    config, answers = scripted
    answers += [Answer(status, f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode())] * 6
    store = ObjectStore(config)
    for call in (store.get(key), store.describe(key), store.get_verified(key, stored(b"pixels"))):
        with pytest.raises(error, match=message.format(key=key)):
            await call
    await store.close()


async def test_a_server_that_says_nothing_is_given_up(
    scripted: tuple[S3Config, list[Answer]], key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given a server that takes requests and does not answer, then a read is tried twice, and a write is over too."""
    for module in (object_store, s3_clients):
        monkeypatch.setattr(module, "READ_TIMEOUT_S", 0.2)
    config, answers = scripted
    answers += [HANG] * 3
    store = ObjectStore(config)
    with pytest.raises(ObjectStoreUnavailable, match=r"can't be reached: .*\(Timeout\)"):
        await store.get(key)
    assert answers == [HANG]
    with pytest.raises(ObjectStoreUnavailable, match="took no object within"):
        await store.put(key, b"pixels", PNG)
    assert answers == []
    await store.close()


async def test_of_an_oversized_object_little_is_sent(
    scripted: tuple[S3Config, list[Answer]], key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given an object of 256 MiB where less is expected, then the server can't send more than the sockets buffer."""
    monkeypatch.setattr(object_store, "MAX_OBJECT_BYTES", 2**20)
    config, answers = scripted
    huge = Answer(200, size=2**28)
    answers += [huge, huge, Answer(412), huge]
    store = ObjectStore(config)
    for call in (
        store.get(key, max_bytes=100),
        store.get_verified(key, stored(b"pixels")),
        store.put(key, b"pixels", PNG),
    ):
        with pytest.raises(ObjectChanged):
            await call
    assert answers == []
    assert Script.sent_bytes < 2**27
    await store.close()


async def test_what_this_process_has_put_is_not_read_again(store: ObjectStore, key: str) -> None:
    body = bytes(100)
    await store.put(key, body, PNG)
    assert await store.get_verified(key, stored(body)) is body


async def test_what_this_process_has_put_is_missed_when_it_is_gone_or_changed(
    s3_config: S3Config, store: ObjectStore, key: str
) -> None:
    """Given a body that is kept in memory, then its object is still asked for, under its ETag."""
    body, other = b"pixels", ObjectStore(s3_config)
    await store.put(key, body, PNG)
    await other.replace(key, b"pixelz", PNG)
    with pytest.raises(ObjectChanged, match=key):
        await store.get_verified(key, stored(body))
    await other.replace(key, body, PNG)
    assert await store.get_verified(key, stored(body)) == body
    await asyncio.to_thread(store._s3.delete_object, Bucket=s3_config.bucket, Key=key)
    with pytest.raises(ObjectMissing, match=key):
        await store.get_verified(key, stored(body))
    await other.close()


async def test_what_was_adopted_or_overwritten_is_read(store: ObjectStore, key: str) -> None:
    """Given a key under which another's object lies, then what this process wanted there is never taken for it."""
    await store.put(key, b"first", PNG)
    await store.put(key, b"second", PNG)
    assert await store.get_verified(key, stored(b"first")) == b"first"
    await store.replace(key, b"third", PNG)
    assert await store.get_verified(key, stored(b"third")) == b"third"
    with pytest.raises(ObjectChanged, match=key):
        await store.get_verified(key, stored(b"first"))


async def test_foreign_settings_of_aws_and_proxies_do_not_matter(
    s3_config: S3Config, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere = "http://127.0.0.1:9"
    for name in ("http_proxy", "https_proxy", "all_proxy", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.setenv(name, nowhere)
    # obstore reads these, too, and several of them can't be overridden.
    for name in ("AWS_ALLOW_HTTP", "AWS_SKIP_SIGNATURE", "AWS_S3_EXPRESS", "AWS_VIRTUAL_HOSTED_STYLE_REQUEST"):
        monkeypatch.setenv(name, "true")
    monkeypatch.setenv("AWS_CHECKSUM_ALGORITHM", "foreign")
    monkeypatch.setenv("AWS_SERVER_SIDE_ENCRYPTION", "aws:kms")
    monkeypatch.setenv("AWS_PROXY_URL", nowhere)
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_RETRY_MODE"):
        monkeypatch.setenv(name, "foreign")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent/config")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "many")
    monkeypatch.setenv("AWS_USE_FIPS_ENDPOINT", "true")
    before = dict(os.environ)
    store = ObjectStore(s3_config)
    await store.ensure_bucket()
    assert await store.put(key, b"pixels", PNG) == stored(b"pixels")
    assert await store.get(key) == b"pixels"
    assert await asyncio.to_thread(fetch, store.presign(key, 300)) == (b"pixels", PNG)
    assert dict(os.environ) == before
    await store.close()


async def test_closes_twice(s3_config: S3Config) -> None:
    store = ObjectStore(s3_config)
    await store.check_ready()
    await store.close()
    await store.close()


def test_shows_no_keys(s3_config: S3Config) -> None:
    assert s3_config.secret_key not in repr(s3_config)
