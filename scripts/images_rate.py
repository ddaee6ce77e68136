"""Compares images a second through the whole service with those of a bare loop over the same pipeline.

The bare loop has a process of its own, as the engine has, and renders batches one after the other. The two take turns,
so that what else the machine does hits both. Random weights do as well as any: what counts is their number.

    batches     jobs of many images, at equal batch size: the service's rate over the loop's
    joined      eight jobs of one image each, posted at once: over the loop's, one image at a time
    first       from POST to the first image in the store, with the model open
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from tests.images import models
from tests.kit import Api, Service

PROMPT = "a castle on a hill at dawn, oil on canvas, muted colours"
JOINED = 8


class Given(msgspec.Struct, frozen=True):
    """What to compare with. side: of the square pictures, in pixels."""

    folder: str
    side: int
    batch: int
    steps: int
    batches: int
    device: str
    dtype: str


def bare(given: Given) -> None:
    """Render batches, and print each one's seconds."""
    import torch  # noqa: PLC0415  # in the process of its own alone

    from runners.engines.memory import best_device, best_dtype  # noqa: PLC0415
    from runners.engines.pipelines import open_pipeline  # noqa: PLC0415
    from runners.engines.protocol import ModelRef  # noqa: PLC0415

    device = best_device() if given.device == "auto" else torch.device(given.device)
    dtype = best_dtype(device) if given.dtype == "auto" else getattr(torch, given.dtype)
    pipe = open_pipeline(ModelRef(kind="generator", path=given.folder), device, dtype).pipe
    seconds = []
    for _ in range(given.batches + 1):
        began = time.perf_counter()
        with torch.inference_mode():
            pipe(
                prompt=[PROMPT] * given.batch,
                negative_prompt=[""] * given.batch,
                width=given.side,
                height=given.side,
                num_inference_steps=given.steps,
                guidance_scale=7.0,
                generator=[torch.Generator("cpu").manual_seed(n) for n in range(given.batch)],
            )
        seconds.append(time.perf_counter() - began)
    sys.stdout.write(json.dumps(seconds[1:]))


def bare_rate(given: Given, batch: int) -> float:
    """Images a second of the bare loop, its first batch aside."""
    told = msgspec.json.encode(msgspec.structs.replace(given, batch=batch)).decode()
    done = subprocess.run([sys.executable, __file__, "--bare", told], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(done.stderr[-2000:])
    seconds: list[float] = json.loads(done.stdout)
    return batch * len(seconds) / sum(seconds)


class Deployment:
    """The service with one model, on embedded backends."""

    def __init__(self, given: Given, home: str) -> None:
        self._given = given
        environ = {
            "DF_HOME": home,
            "DF_PORT": "0",
            "DF_MODEL": given.folder,
            "DF_DEVICE": given.device,
            "DF_DTYPE": given.dtype,
            "DF_BATCH_MAX": str(given.batch),
            "DF_RUNNER_SLOTS": str(max(JOINED, given.batch)),
        }
        self._service = Service("up", environ)
        self.api = Api(self._service.url)

    def stop(self) -> None:
        """End it."""
        self.api.close()
        self._service.stop()

    def post(self, count: int) -> str:
        """A job of so many images."""
        side = self._given.side
        return self.api.create(
            scale=None, prompt=PROMPT, width=side, height=side, steps=self._given.steps, count=count, format="png"
        )

    def done(self, job: str) -> list[Any]:
        """The job's history once it has succeeded. Waits on its stream: asking again and again would slow it down."""
        self.api.stream(job)
        found = self.api.job(job)
        if found["status"] != "succeeded":
            raise RuntimeError(f"{found['error_code']}: {found['error_message']}\n{self._service.output}")
        return self.api.history(job)

    def rate(self) -> float:
        """Images a second of one job, from its first batch's end to its last's."""
        given = self._given
        history = self.done(self.post(given.batch * (given.batches + 1)))
        ends = [moment(event) for event in history if event["code"] == "sampling.batch"]
        return given.batch * (len(ends) - 1) / (ends[-1] - ends[0])

    def joined(self) -> tuple[float, list[int]]:
        """Images a second of single-image jobs that are posted at once, and the batches that they came in."""
        began = time.time()
        histories = [self.done(job) for job in [self.post(1) for _ in range(JOINED)]]
        ends = [moment(event) for history in histories for event in history if event["code"] == "artifact.written"]
        sizes = [data(event)["size"] for history in histories for event in history if event["code"] == "sampling.batch"]
        return JOINED / (max(ends) - began), sizes

    def first(self) -> tuple[float, Any]:
        """Seconds from POST to the first image in the store, and the memory that it took."""
        began = time.time()
        history = self.done(self.post(1))
        [written] = [event for event in history if event["code"] == "artifact.written"]
        [batch] = [event for event in history if event["code"] == "sampling.batch"]
        return moment(written) - began, data(batch)["memory"]


def moment(event: Any) -> float:
    """When an event happened."""
    return datetime.fromisoformat(event["ts"]).timestamp()


def data(event: Any) -> Any:
    """An event's data."""
    return json.loads(event["data"]) if isinstance(event["data"], str) else event["data"]


def compare(given: Given, rounds: int) -> dict[str, Any]:
    """Let the two take turns."""
    with tempfile.TemporaryDirectory() as home:
        deployment = Deployment(given, home)
        try:
            deployment.first()
            ours, bares, joins, ones, firsts = [], [], [], [], []
            for _ in range(rounds):
                bares.append(bare_rate(given, given.batch))
                ours.append(deployment.rate())
                ones.append(bare_rate(given, 1))
                joined, sizes = deployment.joined()
                joins.append(joined)
                first, memory = deployment.first()
                firsts.append(first)
        finally:
            deployment.stop()
    return {
        "images_s": round(statistics.median(ours), 3),
        "bare_images_s": round(statistics.median(bares), 3),
        "ratio": round(statistics.median(a / b for a, b in zip(ours, bares, strict=True)), 3),
        "joined_images_s": round(statistics.median(joins), 3),
        "bare_one_by_one_images_s": round(statistics.median(ones), 3),
        "joined_ratio": round(statistics.median(a / b for a, b in zip(joins, ones, strict=True)), 3),
        "joined_batches": sizes,
        "first_image_s": round(statistics.median(firsts), 3),
        "memory": memory,
    }


def main() -> None:
    """Compare as the command line asks, and print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bare", help=argparse.SUPPRESS)
    parser.add_argument("--model", choices=tuple(models.KINDS), default="small")
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--batches", type=int, default=3, help="how many make a window")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    args = parser.parse_args()
    if args.bare:
        bare(msgspec.json.decode(args.bare, type=Given))
        return
    with tempfile.TemporaryDirectory() as folder:
        models.KINDS[args.model](Path(folder))
        given = Given(folder, args.side, args.batch, args.steps, args.batches, args.device, args.dtype)
        figures = compare(given, args.rounds)
    shown = {"model": args.model, "side": args.side, "batch": args.batch, "steps": args.steps, **figures}
    sys.stdout.write(json.dumps(shown, indent=2) + "\n")


if __name__ == "__main__":
    main()
