"""OpenAI Images at /openai/v1, called with the `openai` package as its registry has it.

DF_TEST_OPENAI_PYTHON names an interpreter with another version of the package than this environment's.
"""

import asyncio
import base64
import contextlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import pytest

from artifacts.object_store import S3Config
from tests.conftest import Backends, fresh_database
from tests.http.conftest import running, until
from tests.http.test_access import Realm
from tests.http.test_models import register
from tests.kit import outside, project_root

PYTHON = os.environ.get("DF_TEST_OPENAI_PYTHON", sys.executable)
PRELUDE = """
import json, os, openai
client = openai.OpenAI(base_url=os.environ["BASE"] + "/openai/v1", api_key=os.environ["KEY"])
def failure(call):
    try:
        call()
    except openai.APIStatusError as error:
        return [type(error).__name__, error.status_code, error.code, error.param]
"""
SMALL = 'size="64x64", extra_body={"num_inference_steps": 2}'
HEARTBEAT_S = 0.2
SILENCE_S = 3.0


def begin(base: str, key: str, code: str) -> "subprocess.Popen[str]":
    """Start a program of the client's; it prints JSON."""
    environ = {**outside(), "BASE": base, "KEY": key, "NO_PROXY": "*", "no_proxy": "*"}
    environ.pop("PYTHONPATH", None)
    return subprocess.Popen([PYTHON, "-c", PRELUDE + code], env=environ, stdout=subprocess.PIPE, text=True)


def result(program: "subprocess.Popen[str]") -> Any:
    """What it printed."""
    printed, _ = program.communicate(timeout=120)
    assert program.returncode == 0
    return json.loads(printed)


def run(base: str, key: str, code: str) -> Any:
    """Run a program of the client's."""
    return result(begin(base, key, code))


@pytest.fixture(scope="module")
def realm(backends: Backends, s3_config: S3Config, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Realm]:
    """A whole stack that asks for keys and knows two models."""
    with fresh_database(backends) as url, running("up", url, s3_config, DF_REQUIRE_KEYS="1") as service:
        assert service.url
        asyncio.run(register(url, tmp_path_factory.mktemp("models")))
        yield Realm(service, url)


@pytest.fixture(scope="module")
def key(realm: Realm) -> str:
    """A key to it."""
    return realm.key("acme", "jobs")


@pytest.fixture
def idle(backends: Backends, s3_config: S3Config) -> Iterator[Realm]:
    """An API whose jobs wait until a test starts what runs them."""
    environ = {"DF_REQUIRE_KEYS": "1", "DF_TENANT_MAX_QUEUED_JOBS": "1", "DF_SSE_HEARTBEAT_S": str(HEARTBEAT_S)}
    with (
        fresh_database(backends) as url,
        running("api", url, s3_config, **environ) as service,
        running("projector", url, s3_config),
    ):
        assert service.url
        yield Realm(service, url)


class Proxy:
    """A proxy that cuts connections on which the service is silent. most_cuts: after so many it cuts no more."""

    def __init__(self, url: str, most_cuts: int) -> None:
        self._service = httpx.URL(url)
        self._most_cuts = most_cuts
        self._loop = asyncio.new_event_loop()
        self.cuts = 0
        self._server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream, upward = await asyncio.open_connection(self._service.host, self._service.port)
        sending = asyncio.create_task(self._forward(reader, upward, None))
        try:
            with contextlib.suppress(ConnectionError):
                await self._forward(upstream, writer, SILENCE_S)
        finally:
            sending.cancel()
            for one in (upward, writer):
                one.close()
                with contextlib.suppress(ConnectionError):
                    await one.wait_closed()

    async def _forward(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, silence_s: float | None
    ) -> None:
        while True:
            try:
                part = await asyncio.wait_for(reader.read(65536), silence_s if self.cuts < self._most_cuts else None)
            except TimeoutError:
                self.cuts += 1
                return
            if not part:
                return
            writer.write(part)
            await writer.drain()

    def close(self) -> None:
        """Stop."""

        async def end() -> None:
            self._server.close()
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@contextlib.contextmanager
def proxy(url: str, most_cuts: int) -> Iterator[Proxy]:
    """A proxy for as long as the block."""
    made = Proxy(url, most_cuts)
    try:
        yield made
    finally:
        made.close()


def jobs_of(realm: Realm, key: str) -> list[Any]:
    """The tenant's jobs."""
    with realm.client(key) as client:
        return list(client.get("/v1/jobs").raise_for_status().json()["jobs"])


def hashes_in_log(realm: Realm, key: str, job_id: str) -> list[str]:
    """The SHA-256 of the images that a job's history names, in order."""
    with realm.client(key) as client:
        events = client.get(f"/v1/jobs/{job_id}/events").raise_for_status().json()["events"]
    written = [json.loads(event["data"]) for event in events if event["code"] == "artifact.written"]
    return [one["sha256"] for one in sorted(written, key=lambda one: one["item_index"])]


def hash_of(b64_json: str) -> str:
    """The SHA-256 of an image."""
    return sha256(base64.b64decode(b64_json)).hexdigest()


def test_the_images_are_those_of_the_job_in_the_log(realm: Realm, key: str) -> None:
    code = f"""
raw = client.images.with_raw_response.generate(prompt="a castle", n=2, model="dall-e-3", user="me", {SMALL})
answer = raw.parse()
print(json.dumps([raw.headers["X-Job-Id"], [image.b64_json for image in answer.data], answer.size,
    answer.output_format, answer.model]))
"""
    job_id, images, size, output_format, model = run(realm.service.url, key, code)
    assert [hash_of(image) for image in images] == hashes_in_log(realm, key, job_id)
    assert len(images) == 2
    assert (size, output_format) == ("64x64", "png")
    assert model


def test_urls_answer_the_image(realm: Realm, key: str) -> None:
    code = f"""
raw = client.images.with_raw_response.generate(
    prompt="a castle", model="second", response_format="url", output_format="jpeg", {SMALL})
print(json.dumps([raw.headers["X-Job-Id"], raw.parse().data[0].url, raw.parse().model]))
"""
    job_id, url, model = run(realm.service.url, key, code)
    body = httpx.get(url, trust_env=False).raise_for_status().content
    assert [sha256(body).hexdigest()] == hashes_in_log(realm, key, job_id)
    assert model == "second"
    assert body.startswith(b"\xff\xd8")


def test_a_stream_has_an_event_for_each_image(realm: Realm, key: str) -> None:
    code = f"""
stream = client.images.generate(prompt="streamed", n=2, stream=True, partial_images=1, {SMALL})
job_id = stream.response.headers["X-Job-Id"]
print(json.dumps([job_id, *([event.type, event.b64_json, event.size, event.output_format] for event in stream)]))
"""
    job_id, *events = run(realm.service.url, key, code)
    assert [event[0] for event in events] == ["image_generation.completed"] * 2
    assert [hash_of(event[1]) for event in events] == hashes_in_log(realm, key, job_id)
    assert {tuple(event[2:]) for event in events} == {("64x64", "png")}


def test_models_are_listed_by_name(realm: Realm, key: str) -> None:
    code = """
models = client.models.list().data
print(json.dumps([[m.id, m.object, m.owned_by, client.models.retrieve(m.id).created == m.created] for m in models]))
"""
    expected = [[name, "model", "dream-forge", True] for name in ("first", "second")]
    assert run(realm.service.url, key, code) == expected


def test_failures_are_the_clients_own_classes(realm: Realm, key: str) -> None:
    code = """
generate = lambda **more: failure(lambda: client.images.generate(**{"prompt": "p", **more}))
strange = client.with_options(api_key="df_none")
print(json.dumps([
    generate(size="big"), generate(size="8x8"), generate(n=11), generate(output_format="webp"),
    generate(extra_body={"sampler": "x"}), generate(extra_body={"num_inference_steps": 0}), generate(prompt=""),
    generate(model="none"), failure(lambda: client.models.retrieve("none")),
    failure(lambda: client.models.list(extra_query={"a": "b"})), failure(lambda: strange.models.list()),
]))
"""
    bad = ["BadRequestError", 400, "invalid_value"]
    missing = ["NotFoundError", 404, "model_not_found", "model"]
    assert run(realm.service.url, key, code) == [
        [*bad, "size"],
        [*bad, "size"],
        [*bad, "n"],
        [*bad, "output_format"],
        ["BadRequestError", 400, "unknown_parameter", "sampler"],
        [*bad, "num_inference_steps"],
        [*bad, "prompt"],
        missing,
        missing,
        None,
        ["AuthenticationError", 401, "invalid_api_key", "Authorization"],
    ]


def test_the_same_idempotency_key_is_the_same_job(realm: Realm, key: str) -> None:
    body = {"prompt": "once", "size": "64x64", "num_inference_steps": 2, "upscale": 2}
    with realm.client(key) as client:
        first, second = (
            client.post("/openai/v1/images/generations", json=body, headers={"Idempotency-Key": "one"})
            for _ in range(2)
        )
    assert first.headers["X-Job-Id"] == second.headers["X-Job-Id"]
    assert first.json() == second.json()
    assert first.json()["size"] == "128x128"


def test_one_job_too_many_is_a_rate_limit_error(idle: Realm) -> None:
    key = idle.key("acme", "jobs")
    with idle.client(key) as client:
        client.post("/v1/jobs", json={"type": "generate", "prompt": "first"}).raise_for_status()
    code = """
hasty = client.with_options(max_retries=0)
print(json.dumps(failure(lambda: hasty.images.generate(prompt="second"))))
"""
    assert run(idle.service.url, key, code) == ["RateLimitError", 429, "rate_limit_exceeded", None]


def test_a_stream_outlives_a_proxy_that_cuts_silence(idle: Realm, s3_config: S3Config) -> None:
    key = idle.key("acme", "jobs")
    code = f"""
events = list(client.images.generate(prompt="slow", stream=True, {SMALL}))
print(json.dumps([event.b64_json for event in events]))
"""
    with proxy(idle.service.url, most_cuts=99) as between:
        program = begin(between.url, key, code)
        [job] = until(lambda: jobs_of(idle, key))
        with pytest.raises(subprocess.TimeoutExpired):
            program.wait(2 * SILENCE_S)
        with running("up", idle.url, s3_config):
            [image] = result(program)
        assert between.cuts == 0
    assert [hash_of(image)] == hashes_in_log(idle, key, job["id"])


def test_a_call_that_a_proxy_cuts_twice_is_one_job(idle: Realm, s3_config: S3Config) -> None:
    key = idle.key("acme", "jobs")
    code = f"""
print(json.dumps([client.images.generate(prompt="slow", {SMALL}).data[0].b64_json]))
"""
    with proxy(idle.service.url, most_cuts=2) as between:
        program = begin(between.url, key, code)
        until(lambda: between.cuts == 2)
        with running("up", idle.url, s3_config):
            [image] = result(program)
    [job] = jobs_of(idle, key)
    assert [hash_of(image)] == hashes_in_log(idle, key, job["id"])


def test_a_repeated_call_is_the_same_job_only_for_the_same_key_and_request(realm: Realm) -> None:
    keys = [realm.key("repeats", "jobs") for _ in range(2)]

    def job_of(key: str, repeats: str, **more: Any) -> str:
        body = {"prompt": "again", "size": "64x64", "num_inference_steps": 2, **more}
        headers = {"X-Stainless-Retry-Count": repeats}
        with realm.client(key) as client:
            answer = client.post("/openai/v1/images/generations", json=body, headers=headers).raise_for_status()
        return answer.headers["X-Job-Id"]

    for key in keys:  # a new key is known after two seconds at most
        with realm.client(key) as client:
            until(lambda client=client: client.get("/v1/jobs").is_success)
    first = job_of(keys[0], "0")
    until(lambda: [job["status"] for job in jobs_of(realm, keys[0])] == ["succeeded"])
    assert job_of(keys[0], "1") == first
    assert job_of(keys[0], "1", response_format="url") == first
    others = [
        job_of(keys[1], "1"),
        job_of(keys[0], "1", negative_prompt="a moat"),
        job_of(keys[0], "1", upscale=2),
        job_of(keys[0], "0"),
    ]
    assert len({first, *others}) == 5


@pytest.mark.parametrize(
    ("stream", "expected"), [("False", ["ConflictError", "job_cancelled"]), ("True", ["APIError", "job_cancelled"])]
)
def test_a_cancelled_job_is_an_error_and_not_asked_for_again(
    idle: Realm, s3_config: S3Config, stream: str, expected: list[str]
) -> None:
    key = idle.key("acme", "jobs")
    code = f"""
try:
    list(client.images.generate(prompt="slow", stream={stream}, {SMALL}))
except openai.APIError as error:
    print(json.dumps([type(error).__name__, error.code]))
"""
    program = begin(idle.service.url, key, code)
    [job] = until(lambda: jobs_of(idle, key))
    with idle.client(key) as client, running("orchestrator", idle.url, s3_config):
        client.post(f"/v1/jobs/{job['id']}/cancel").raise_for_status()
        assert result(program) == expected
    assert len(jobs_of(idle, key)) == 1


def test_the_documented_client_works(realm: Realm, key: str, tmp_path: Path) -> None:
    document = (project_root() / "docs" / "clients.md").read_text("utf-8")
    [code] = re.findall(r"^```python\n(.*?)^```$", document, re.MULTILINE | re.DOTALL)
    assert "http://127.0.0.1:8001" in code
    code = code.replace("http://127.0.0.1:8001", realm.service.url).replace("df_…", key)
    environ = {name: value for name, value in outside().items() if name != "PYTHONPATH"}
    subprocess.run([PYTHON, "-c", code], cwd=tmp_path, env={**environ, "NO_PROXY": "*"}, check=True, timeout=120)
    for name in ("castle.png", "streamed.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_the_adapters_can_be_turned_off(lone_url: str, s3_config: S3Config) -> None:
    with running("api", lone_url, s3_config, DF_COMPAT="0") as service:
        assert httpx.get(f"{service.url}/openai/v1/models", trust_env=False).status_code == 404
