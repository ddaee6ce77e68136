"""Nothing is lost and nothing happens twice when everything is killed, again and again."""

import asyncio
import contextlib
import hashlib
import io
import os
import random
import time
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from PIL import Image

from orchestrator.plan import item_seed, object_key
from tests.kit import TERMINAL, Api, Service, codes, eventually

ITEMS = 30
KILLS = 20
SIZE = 640
SEED = 2026
POST_KILLS = 3
POSTS = 200
POSTERS = 64


class Home:
    """An embedded stack in a home of its own, whose every process can be found and killed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.service: Service | None = None

    def start(self) -> Api:
        """`dreamforge up`."""
        self.service = Service(
            "up",
            {
                "DF_HOME": str(self.path),
                "DF_FAKE_RUNNER": "1",
                "DF_PORT": "0",
                "DF_LEASE_S": "4",
                "DF_MAX_ATTEMPTS": "1000",
                "DF_RETRY_BASE_S": "0.1",
            },
        )
        return Api(self.service.url)

    def processes(self) -> list[psutil.Process]:
        """Every process that runs in the home or for it, but for `dreamforge` itself."""
        found = []
        for process in psutil.process_iter(["name", "cmdline"]):
            try:
                belongs = str(self.path) in " ".join(process.info["cmdline"] or [])
                if belongs or str(self.path) in process.cwd():
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return [process for process in found if process.pid != os.getpid()]

    def kill_all(self, *, spare: str | None = None) -> list[int]:
        """SIGKILL everything at once, but for processes of the spared name; answers which were spared."""
        assert self.service is not None
        self.service.process.kill()
        while victims := [process for process in self.processes() if _name(process) != spare]:
            for process in victims:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(victims, timeout=5)
        self.service.kill()
        return [process.pid for process in self.processes()]

    def postmaster(self) -> int:
        """The pid of the embedded PostgreSQL."""
        [pidfile] = self.path.rglob("postmaster.pid")
        return int(pidfile.read_text().splitlines()[0])


def _name(process: psutil.Process) -> str | None:
    """The name of a process, None if it has ended."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return str(process.name())
    return None


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    """An empty home; nothing of it runs afterwards."""
    home = Home(tmp_path / "home")
    yield home
    if home.service is not None:
        home.service.stop()
    for process in home.processes():
        process.kill()


def test_a_job_survives_twenty_sigkills_of_everything_and_one_adoption(home: Home) -> None:
    """Given a chained job of 30 items, killed whole at 20 random moments, then it is as if nothing was.

    On a machine so fast that the job is done before the last kill, another one takes its place.
    """
    api = home.start()
    jobs = [post(api)]
    dice = random.Random(20)
    for _ in range(KILLS):
        time.sleep(dice.uniform(0.05, 1.2))
        if api.job(jobs[-1])["status"] in TERMINAL:
            jobs.append(post(api))
        api.close()
        assert home.kill_all() == []
        api = home.start()
    time.sleep(1)
    api.close()
    postmaster = home.postmaster()
    assert postmaster in home.kill_all(spare="postgres")
    api = home.start()
    assert home.postmaster() == postmaster, "the PostgreSQL that was left alive was not adopted"
    for job_id in jobs:
        assert api.finished(job_id, within=180)["status"] == "succeeded"
        check(api, job_id)
    api.close()


async def test_every_answered_post_has_its_job_after_api_and_postgresql_were_killed(home: Home) -> None:
    """Given 64 clients that post as fast as they can, when both get SIGKILL, then every 202 has its job."""
    api = await asyncio.to_thread(home.start)
    answered: list[str] = []
    for number in range(1, POST_KILLS + 1):
        posting = asyncio.gather(*(post_until_cut_off(api.base, answered) for _ in range(POSTERS)))
        await eventually(partial(has_at_least, answered, number * POSTS), within=60)
        assert await asyncio.to_thread(home.kill_all) == []
        await posting
        api.close()
        api = await asyncio.to_thread(home.start)
    async with httpx.AsyncClient(base_url=api.base, trust_env=False, timeout=60) as client:
        lost = [job_id for job_id in answered if (await client.get(f"/v1/jobs/{job_id}")).status_code != 200]
    api.close()
    assert lost == []
    assert len(set(answered)) == len(answered) >= POST_KILLS * POSTS


async def has_at_least(answered: list[str], count: int) -> bool:
    """Were so many posts answered?"""
    return len(answered) >= count


async def post_until_cut_off(base: str, answered: list[str]) -> None:
    """Post jobs until the server is gone; note those that were answered with 202."""
    body = {"type": "generate", "prompt": "a lighthouse", "width": 64, "height": 64}
    async with httpx.AsyncClient(base_url=base, trust_env=False, timeout=60) as client:
        with contextlib.suppress(httpx.TransportError):
            while True:
                answer = await client.post("/v1/jobs", json=body)
                if answer.status_code == 202:
                    answered.append(answer.json()["job"]["id"])


def post(api: Api) -> str:
    """The job that is killed."""
    return api.create(prompt="a lighthouse", width=SIZE, height=SIZE, count=ITEMS, seed=SEED)


def check(api: Api, job_id: str) -> None:
    """Each item written once under its planned seed and key; every object there, whole and readable."""
    history = api.history(job_id)
    assert codes(history).count("job.finish") == 1
    assert Counter(event["step"] for event in history if event["code"] == "step.finish") == {
        "generate": 1,
        "upscale": 1,
    }
    written = Counter(event["step"] for event in history if event["code"] == "artifact.written")
    assert written == {"generate": ITEMS, "upscale": ITEMS}
    artifacts = api.artifacts(job_id)
    starts: dict[str, datetime] = {}
    for event in history:
        if event["code"] == "step.start":
            starts.setdefault(event["step"], datetime.fromisoformat(event["ts"]))
    keys = Counter(one["s3_key"] for one in artifacts)
    assert max(keys.values()) == 1
    for step, side in (("generate", SIZE), ("upscale", 2 * SIZE)):
        of_step = [one for one in artifacts if one["step"] == step]
        assert [one["item_index"] for one in of_step] == list(range(ITEMS))
        for index, one in enumerate(of_step):
            seed = item_seed(SEED, ITEMS, index)
            key = object_key("default", job_id, step, starts[step], index, (side, side), seed, "png")  # type: ignore[arg-type]
            assert (one["seed"], one["s3_key"]) == (seed, key)
            check_object(one)


def check_object(artifact: Any) -> None:
    """The object has the recorded length, hash and size."""
    body = httpx.get(artifact["url"], trust_env=False).raise_for_status().content
    assert len(body) == artifact["bytes"]
    assert hashlib.sha256(body).hexdigest() == artifact["sha256"]
    image = Image.open(io.BytesIO(body))
    image.load()
    assert image.size == (artifact["width"], artifact["height"])
