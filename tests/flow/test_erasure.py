"""Personal text is taken away, for good: from the log, the read models, the objects and the database's files."""

import json
import mmap
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from artifacts.object_store import ObjectStore, S3Config
from dreamforge.embedded import EmbeddedPostgres, EmbeddedSeaweed
from tests import poison
from tests.kit import NOBODY, Api, Service, codes, connect, dreamforge, eventually

_LISTS_NOTHING = """
import artifacts.object_store

async def keys(store, prefix):
    return []

artifacts.object_store.ObjectStore.list_keys = keys
"""


class Stack:
    """Everything in one home, with one job that has ended, whose texts are like no other's."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.environ = {"DF_HOME": str(home), "DF_LEASE_S": "4"}
        prompt, negative, metadata = (f"{name}-{secrets.token_hex(12)}" for name in ("prompt", "negative", "metadata"))
        self.trace = f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01"
        self.texts = [prompt, negative, metadata, self.trace]
        self.service = Service("up", {**self.environ, "DF_FAKE_RUNNER": "1", "DF_PORT": "0"})
        self.api = Api(self.service.url)
        self.api.http.headers["traceparent"] = self.trace
        self.job = self.api.create(prompt=prompt, negative_prompt=negative, metadata={"who": metadata})
        del self.api.http.headers["traceparent"]
        self.api.finished(self.job)

    def ask(self, *arguments: str, code: int = 0) -> Any:
        """The answer of a command, which must exit so."""
        done = dreamforge(*arguments, "--json", **self.environ)
        assert done.returncode == code, done.stderr
        return json.loads(done.stdout) if done.stdout else done.stderr

    def contains(self, text: str) -> list[str]:
        """The files of the home in which a text can be found."""
        return [str(file) for file in self.home.rglob("*") if file.is_file() and _contains(file, text.encode())]

    def objects(self) -> ObjectStore:
        """The objects of the home."""
        seaweed = EmbeddedSeaweed.find_running(self.home)
        assert seaweed is not None
        return ObjectStore(S3Config(seaweed.endpoint, seaweed.access_key, seaweed.secret_key))

    @property
    def db_url(self) -> str:
        """The database of the home."""
        url = EmbeddedPostgres.running_url(self.home)
        assert url is not None
        return url

    async def quarantine(self, job: str) -> None:
        """Let a job, at its end, have an event that no release can read, until it is set aside."""
        version = self.api.finished(job)["version"]
        await poison.append(self.db_url, UUID(job), version, *poison.NO_SUCH_OUTCOME)

        async def is_quarantined() -> bool:
            return codes(self.api.history(job))[-1] == "job.quarantined"

        await eventually(is_quarantined, what="the quarantine")

    def stop(self) -> None:
        """End it all."""
        self.api.close()
        self.service.stop()


def _contains(file: Path, text: bytes) -> bool:
    if file.stat().st_size == 0:
        return False
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(text) >= 0


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    """A stack of the test's own."""
    made = Stack(tmp_path / "home")
    yield made
    made.stop()


async def test_nothing_is_left_of_what_was_erased(stack: Stack) -> None:
    """Given a job whose text lies in the log and in two read models, when it is erased, then no file holds it.

    Nor the client's trace, which lies in a command of an earlier release, too.
    The files are searched while the server runs, after what `audit scrub` does.
    """
    others = stack.api.create(prompt="a prompt that stays")
    stack.api.finished(others)
    stack.ask("projections", "rebuild", "--workers", "1")
    connection = await connect(stack.db_url)
    await connection.execute(
        "insert into pgmq.a_generate (msg_id, vt, message) values (1000, now(), $1::jsonb)",
        json.dumps({"job_id": stack.job, "traceparent": stack.trace}),
    )
    await connection.execute("checkpoint")
    await connection.close()
    assert all(stack.contains(text) for text in stack.texts)

    [erased] = stack.ask("audit", "erase", stack.job)
    assert (erased["events"], erased["files"]) == (1, 2)
    stack.ask("audit", "scrub")
    assert {text: stack.contains(text) for text in stack.texts} == {text: [] for text in stack.texts}

    whole = stack.ask("audit", "verify", "--all", "--artifacts")
    assert (whole["flaws"], whole["bad_artifacts"], whole["artifacts"]) == ([], [], 4)
    assert stack.ask("projections", "verify")["wrong"] == 0
    assert stack.ask("audit", "replay", stack.job)["disagreement"] is None
    then = stack.api.http.get(f"/v1/jobs/{stack.job}", params={"as_of_version": 3}, headers={"If-None-Match": '"v3"'})
    assert then.status_code == 200, "a copy of before, with the prompt, must not be taken for the answer of now"
    assert then.json()["params"]["prompt"] is None
    job = stack.api.job(stack.job)
    assert (job["params"]["prompt"], job["params"]["negative_prompt"], job["metadata"]) == (None, None, {})
    assert stack.api.job(others)["params"]["prompt"] == "a prompt that stays"
    told = dreamforge("audit", "show", stack.job, **stack.environ).stdout
    assert "job.erased" in told
    assert "Prompts and metadata were erased at 20" in told
    assert stack.ask("projections", "rollback")["generation"] == 1
    assert stack.api.job(stack.job)["params"]["prompt"] is None
    assert stack.ask("projections", "verify")["wrong"] == 0


async def test_files_that_no_event_names_and_damaged_ones(stack: Stack) -> None:
    """Given an object that an attempt left behind, and one that is cut off, then one loses its text, one is named."""
    store = stack.objects()
    [picture, _] = await store.list_keys(f"dreamforge/default/jobs/{stack.job}/")
    body = await store.get(picture)
    orphan, damaged = picture.replace("generate/", "generate/earlier_"), picture.replace("generate/", "upscale/cut_")
    await store.put(orphan, body, "image/png")
    await store.put(damaged, body[:-9], "image/png")
    [erased] = stack.ask("audit", "erase", stack.job, code=1)
    assert (erased["files"], erased["damaged"]) == (3, [damaged])
    assert stack.texts[0].encode() in body
    assert stack.texts[0].encode() not in await store.get(orphan)
    told = dreamforge("audit", "erase", stack.job, **stack.environ)
    assert (told.returncode, damaged in told.stderr) == (1, True)
    await store.close()


async def test_files_that_the_store_does_not_list(stack: Stack, tmp_path: Path) -> None:
    """Given a store that lists nothing of what it serves, then the recorded files are erased all the same.

    Those of a job that is set aside, too.
    """
    aside = stack.api.create(prompt=stack.texts[0])
    await stack.quarantine(aside)
    store = stack.objects()
    pictures = await store.list_keys("dreamforge/default/jobs/")
    (tmp_path / "sitecustomize.py").write_text(_LISTS_NOTHING)
    done = dreamforge("audit", "erase", stack.job, aside, **stack.environ, PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    left = [await store.get(picture) for picture in pictures]
    assert len(left) == 4
    assert all(stack.texts[0].encode() not in body for body in left)
    await store.close()


async def test_a_file_that_somebody_replaced_does_not_become_the_jobs(stack: Stack) -> None:
    """Given other bytes in place of an image, with the prompt in them, then they lose it, and no event has them."""
    store = stack.objects()
    [picture, _] = await store.list_keys(f"dreamforge/default/jobs/{stack.job}/")
    body = await store.get(picture)
    foreign = body[:-12] + body[-12:] * 2  # a second end of the file
    await store.replace(picture, foreign, "image/png")
    [erased] = stack.ask("audit", "erase", stack.job)
    assert erased["files"] == 2
    assert stack.texts[0].encode() not in await store.get(picture)
    rewritten = [one for one in stack.api.history(stack.job) if one["code"] == "artifact.rewritten"]
    assert [json.loads(one["data"])["step"] for one in rewritten] == ["upscale"]
    whole = stack.ask("audit", "verify", "--all", "--artifacts", code=1)
    assert [one["s3_key"] for one in whole["bad_artifacts"]] == [picture]
    await store.close()


def test_erasing_again_changes_nothing(stack: Stack) -> None:
    """Given a job that was erased, or that does not exist, or that has not ended, then the command says so."""
    version = stack.ask("audit", "erase", stack.job)[0]["version"]
    assert stack.ask("audit", "erase", stack.job) == [
        {"job_id": stack.job, "version": version, "events": 0, "files": 0, "damaged": []}
    ]
    assert stack.ask("audit", "erase", str(NOBODY), code=4) == []
    running = stack.api.create(count=10, width=1024, height=1024)
    done = dreamforge("audit", "erase", stack.job, running, **stack.environ)
    assert (done.returncode, stack.job in done.stdout) == (5, True)
    assert f"job {running}: The job has not ended" in done.stderr
    assert stack.api.job(running)["params"]["prompt"] == "a castle"
    stack.api.http.post(f"/v1/jobs/{running}/cancel")
    assert stack.api.finished(running)["status"] == "cancelled"
    [erased] = stack.ask("audit", "erase", running)
    assert (erased["events"], erased["damaged"]) == (1, [])
    assert stack.api.job(running)["params"]["prompt"] is None
