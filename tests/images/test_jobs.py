"""Whole jobs over HTTP, rendered by real pipelines in an engine process of their own."""

import json
import time
from collections.abc import Callable, Iterable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

import httpx
import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from artifacts.object_store import S3Config
from tests.conftest import Backends, fresh_database
from tests.http.conftest import consumer, running
from tests.images import tiny
from tests.kit import Api, dreamforge, roles_environ

T = TypeVar("T")
# An engine that must start anew imports torch first, which takes a crowded machine minutes.
PATIENCE_S = 600.0
pytestmark = pytest.mark.timeout(1800)
REAL = {
    "DF_FAKE_RUNNER": "0",
    "DF_DEVICE": "cpu",
    "DF_BATCH_MAX": "2",
    "DF_RUNNER_SLOTS": "4",
    "DF_RETRY_BASE_S": "0.1",
}
FAULTS = "generate=oom:1:1,generate=kill:2:1,generate=hang:4:1,upscale=oom:1:1,upscale=kill:2:1,upscale=hang:4:1"


class Deployment(msgspec.Struct, frozen=True):
    """A service with models, and how a command reaches its backends."""

    api: Api
    environ: dict[str, str]
    xl: str

    def done(self, job: str) -> Any:
        """The job when it has ended."""
        return self.api.finished(job, within=PATIENCE_S)

    def made(self, **body: Any) -> str:
        """The id of a job that has succeeded."""
        job = self.api.create(**body)
        found = self.done(job)
        assert found["status"] == "succeeded", found
        return job

    def pictures(self, job: str, step: str = "generate") -> list[NDArray[np.int64]]:
        """A step's pixels, by item."""
        return [
            np.asarray(Image.open(BytesIO(httpx.get(artifact["url"], trust_env=False).content))).astype(np.int64)
            for artifact in self.api.artifacts(job, step=step)
        ]

    def events(self, job: str, code: str) -> list[Any]:
        """The data of a job's events of a kind."""
        return [event["data"] for event in map(_decoded, self.api.history(job)) if event["code"] == code]

    def until(self, probe: Callable[[], T]) -> T:
        """What a probe answers once that is true."""
        deadline = time.monotonic() + PATIENCE_S
        while not (found := probe()):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        return found

    def reproduced(self, job: str, code: int = 0) -> Any:
        """What `dreamforge audit reproduce` answers."""
        done = dreamforge("audit", "reproduce", job, "--json", **self.environ)
        assert done.returncode == code, done.stderr
        return json.loads(done.stdout)


def _decoded(event: Any) -> Any:
    return event | {"data": json.loads(event["data"]) if isinstance(event["data"], str) else event["data"]}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {
        "sd": tiny.stable_diffusion(folder / "sd"),
        "xl": tiny.stable_diffusion_xl(folder / "xl"),
        "upscaler": tiny.diffusion_upscaler(folder / "upscaler"),
    }


@pytest.fixture(scope="module")
def deployment(backends: Backends, s3_config: S3Config, places: dict[str, Path]) -> Iterator[Deployment]:
    yield from _deployment(backends, s3_config, places)


@pytest.fixture(scope="module")
def troubled(backends: Backends, s3_config: S3Config, places: dict[str, Path]) -> Iterator[Deployment]:
    """Another, whose engine runs out of memory, is killed and hangs in either step of every larger job."""
    yield from _deployment(
        backends, s3_config, places, DF_FAKE_FAIL=FAULTS, DF_ENGINE_STALL_S="12", DF_MAX_ATTEMPTS="9"
    )


def _deployment(backends: Backends, s3: S3Config, places: dict[str, Path], **more: str) -> Iterator[Deployment]:
    with fresh_database(backends) as url:
        environ = roles_environ(url, s3, **REAL, DF_MODEL=str(places["sd"]), **more)
        with running("up", url, s3, **REAL, DF_MODEL=str(places["sd"]), **more) as service, consumer(service) as api:
            xl = _added(environ, places["xl"], "generator")
            _added(environ, places["upscaler"], "diffusion-upscaler")
            yield Deployment(api, environ, xl)


def _added(environ: dict[str, str], path: Path, kind: str) -> str:
    done = dreamforge("models", "add", str(path), "--kind", kind, "--output", "json", **environ)
    assert done.returncode == 0, done.stderr
    return str(json.loads(done.stdout)["id"])


def test_a_chained_job_of_both_steps(deployment: Deployment) -> None:
    """Every option of the contract reaches the pipelines, and the history says by what each image was made."""
    job = deployment.made(
        scale=None,
        prompt="a lighthouse, 灯台",
        negative_prompt="fog",
        width=40,
        height=24,
        steps=3,
        guidance=5.5,
        scheduler="unipc",
        seed=7,
        count=3,
        format="jpg",
        model_id=deployment.xl,
        chain={"upscale": {"scale": 2, "impl": "diffusion"}},
    )
    generate, upscale = deployment.api.job(job)["steps"]
    assert (generate["metadata"]["engine"], generate["metadata"]["model_id"]) == ("diffusers", deployment.xl)
    assert (upscale["metadata"]["engine"], upscale["metadata"]["impl"]) == ("diffusion", "diffusion")
    artifacts = deployment.api.artifacts(job)
    assert [(one["step"], one["width"], one["height"], one["format"]) for one in artifacts] == [
        *[("generate", 40, 24, "jpg")] * 3,
        *[("upscale", 80, 48, "jpg")] * 3,
    ]
    assert [picture.shape for picture in deployment.pictures(job, "upscale")] == [(48, 80, 3)] * 3
    written = deployment.events(job, "artifact.written")
    made = written[0]["rendering"]
    assert (made["engine"], made["device"], made["dtype"]) == ("diffusers", "cpu", "float32")
    assert made["scheduler"] == "UniPCMultistepScheduler"
    assert made["model_sha256"] == deployment.events(job, "model.selected")[0]["model_sha256"]
    assert {"torch", "diffusers"} <= made["versions"].keys()
    assert [one["size"] for one in deployment.events(job, "sampling.batch")] == [2, 1, 1, 1, 1]
    assert [(one["difference"], one["environment"]) for one in deployment.reproduced(job)] == [(0, [])] * 6


def test_strict_scale_takes_a_model_of_that_very_scale(deployment: Deployment) -> None:
    """By 4, that is; and an upscaler that nobody registered fails the job by name."""
    job = deployment.made(scale=None, chain={"upscale": {"scale": 4, "impl": "diffusion", "strict_scale": True}})
    assert [picture.shape for picture in deployment.pictures(job, "upscale")] == [(256, 256, 3)]
    failed = deployment.done(deployment.api.create(scale=None, chain={"upscale": {"scale": 2, "impl": "gan"}}))
    assert (failed["status"], failed["error_code"]) == ("failed", "invalid_input")
    assert "no gan-upscaler for scale 2" in failed["error_message"]


def test_the_same_job_twice_is_the_same_pixels(deployment: Deployment) -> None:
    """By the default model, and without a GAN `auto` resamples."""
    one, other = (deployment.made(prompt="a mill", seed=11, count=2) for _ in range(2))
    for step in ("generate", "upscale"):
        pairs = zip(deployment.pictures(one, step), deployment.pictures(other, step), strict=True)
        assert all(np.array_equal(first, second) for first, second in pairs)
    assert deployment.api.job(one)["steps"][0]["metadata"]["model_id"] is None


def test_waiting_jobs_share_batches(deployment: Deployment) -> None:
    """Given jobs that come while the engine works for another, then two of them at a time are rendered together.

    Each keeps its own history, and is made again to the last bit; alone it is the same within 1/255.
    """
    bodies: list[dict[str, Any]] = [
        {"scale": None, "prompt": f"a ship, {n}", "seed": 20 + n, "steps": 4} for n in range(6)
    ]
    held = deployment.api.create(scale=None, width=512, height=512, steps=200)
    deployment.until(lambda: deployment.events(held, "sampling.tick"))
    jobs = [deployment.api.create(**body) for body in bodies]
    # Of four slots one is taken: three jobs can begin, and wait for the engine.
    waiting = deployment.until(lambda: three(job for job in jobs if deployment.events(job, "step.start")))
    assert deployment.api.http.post(f"/v1/jobs/{held}/cancel").status_code == 202
    assert deployment.done(held)["status"] == "cancelled"
    assert {deployment.done(job)["status"] for job in jobs} == {"succeeded"}
    sizes = {job: deployment.events(job, "sampling.batch")[0]["size"] for job in jobs}
    assert [sizes[job] for job in waiting].count(2) >= 2
    shared = next(job for job in waiting if sizes[job] == 2)
    [found] = deployment.reproduced(shared)
    assert found["difference"] == 0
    alone = deployment.made(**bodies[jobs.index(shared)])
    assert deployment.events(alone, "sampling.batch")[0]["size"] == 1
    assert np.abs(deployment.pictures(alone)[0] - deployment.pictures(shared)[0]).max() <= 1


def three(jobs: Iterable[str]) -> list[str]:
    """Three jobs; none as long as there are fewer."""
    found = list(jobs)
    return found if len(found) == 3 else []


def test_a_cancel_takes_effect_within_a_step(deployment: Deployment) -> None:
    """Given a job of 200 steps, then a cancel ends it long before they are done, and the engine takes the next job."""
    job = deployment.api.create(scale=None, width=512, height=512, steps=200)
    deployment.until(lambda: deployment.events(job, "sampling.tick"))
    assert deployment.api.http.post(f"/v1/jobs/{job}/cancel").status_code == 202
    assert deployment.done(job)["status"] == "cancelled"
    assert deployment.api.artifacts(job) == []
    assert deployment.events(job, "sampling.tick")[-1]["done"] < 200
    deployment.made(scale=None, steps=1)


def test_what_befalls_the_engine_costs_an_attempt_and_no_pixel(deployment: Deployment, troubled: Deployment) -> None:
    """Out of memory, killed and hanging, in either step: the log shows it, the job succeeds all the same.

    Its generated pixels are those of an undisturbed run, and so are all of the next job's.
    """
    body: dict[str, Any] = {
        "prompt": "a comet",
        "seed": 5,
        "count": 5,
        "width": 32,
        "height": 32,
        "scale": None,
        "chain": {"upscale": {"scale": 4, "impl": "diffusion"}},
    }
    job = troubled.made(**body)
    short = troubled.events(job, "sampling.oom")
    assert [(one["step"], one["items"], one["next"]) for one in short] == [
        ("generate", [0, 1], "smaller_batch"),
        ("upscale", [1], "tiling"),
    ]
    lost = {(one["step"], one["items"][0], one["reason"]) for one in troubled.events(job, "engine.lost")}
    assert lost >= {
        ("generate", 2, "it was ended by SIGKILL"),
        ("generate", 4, "it said nothing for 12 s"),
        ("upscale", 2, "it was ended by SIGKILL"),
        ("upscale", 4, "it said nothing for 12 s"),
    }
    retried = troubled.events(job, "step.retry")
    assert all(one["error_code"] == "provider_error" for one in retried)
    calm = deployment.made(**body)
    for found, expected in zip(troubled.pictures(job), deployment.pictures(calm), strict=True):
        assert np.abs(found - expected).max() <= 1

    alone = body | {"count": 1}
    after, undisturbed = troubled.made(**alone), deployment.made(**alone)
    for step in ("generate", "upscale"):
        assert np.array_equal(troubled.pictures(after, step)[0], deployment.pictures(undisturbed, step)[0])


def test_a_model_whose_files_changed_is_rejected(deployment: Deployment, places: dict[str, Path]) -> None:
    """Given a registered model with another byte in its weights, then its job fails and says which file it is."""
    weights = places["xl"] / "unet" / "diffusion_pytorch_model.safetensors"
    body = weights.read_bytes()
    weights.write_bytes(body[:-1] + bytes([body[-1] ^ 1]))
    try:
        job = deployment.done(deployment.api.create(scale=None, model_id=deployment.xl))
    finally:
        weights.write_bytes(body)
    assert (job["status"], job["error_code"]) == ("failed", "provider_error")
    assert "unet/diffusion_pytorch_model.safetensors has changed" in job["error_message"]
