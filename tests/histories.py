"""Random valid histories of jobs."""

import random
from typing import Any

from msgspec.structs import replace

from eventstore.log import Append
from orchestrator.events import (
    CancelRequested,
    JobFinish,
    ModelSelected,
    PersonalText,
    RetryRequested,
    StepError,
    StepName,
    StepRetry,
)
from tests.kit import History, event


def history(rng: random.Random) -> History:
    """A random history of one or two steps with retries, failures and cancels, complete or not."""
    drawn = History(scale=rng.choice([None, 2, 4]), count=rng.randint(1, 4))
    for step in drawn.created.steps:
        if step.name == "upscale" and rng.random() < 0.2:
            _lose(drawn, rng)
        if rng.random() < 0.1 or not _step(drawn, rng, step.name):
            return drawn
    return drawn.add(JobFinish(status="succeeded"))


def _lose(drawn: History, rng: random.Random) -> None:
    """Fail an upscale because a generated image is lost, and render that image again."""
    item = rng.randrange(drawn.created.generate.count)
    gone: dict[str, Any] = {"error_code": "provider_error", "error_message": "no such object", "lost": [item]}
    upscale: dict[str, Any] = {"step_id": drawn.step_id("upscale"), "step_name": "upscale"}
    attempt = drawn.state.steps[0].attempt + 1
    drawn.started("upscale").add(StepError(**upscale, **gone, attempt=1, item_index=item))
    drawn.finished("upscale", "failed").add(JobFinish(status="failed"))
    drawn.add(RetryRequested(step_id=drawn.step_id("generate"), step_name="generate", items=[item]))
    drawn.started("generate", attempt).add(replace(drawn.rewritten("generate", item), attempt=attempt))
    drawn.finished("generate", attempt=attempt)


def append(drawn: History, *, known: int = 0) -> Append:
    """An append of a history's events after the known ones."""
    events = [
        event(decoded.body, private=PersonalText(prompt="a castle") if decoded.version == 1 else None)
        for decoded in drawn.events[known:]
        if decoded.body is not None
    ]
    return Append(stream=drawn.job_id, category="job", expected=known, events=tuple(events))


def _step(drawn: History, rng: random.Random, name: StepName) -> bool:
    """Run a step. Returns whether the job continues."""
    step: dict[str, Any] = {"step_id": drawn.step_id(name), "step_name": name}
    count = drawn.created.generate.count
    attempt, written = drawn.state.step(drawn.step_id(name)).attempt, 0
    while True:
        attempt += 1
        if rng.random() < 0.1:
            broken: dict[str, Any] = {"error_code": "internal", "error_message": "no model could be selected"}
            drawn.add(StepRetry(**step, **broken, attempt=attempt, reason="not_started", delay_s=1.0))
            attempt += 1
        drawn.started(name, attempt)
        if name == "generate":
            drawn.add(ModelSelected(**step, attempt=attempt, engine="fake", source="default", model_id=None))
        upto = rng.randint(written, count)
        drawn.wrote(name, *range(written, upto), attempt=attempt)
        written = upto
        if written == count:
            drawn.finished(name, attempt=attempt)
            return True
        match rng.choice(["stop", "retry", "retry", "fail", "cancel"]):
            case "retry":
                trouble: dict[str, Any] = {"error_code": "provider_error", "error_message": "the GPU is away"}
                drawn.add(StepRetry(**step, attempt=attempt, reason="failure", delay_s=1.0, **trouble))
            case "fail":
                drawn.add(
                    StepError(**step, attempt=attempt, item_index=upto, error_code="internal", error_message="broken")
                )
                drawn.finished(name, "failed", attempt).add(JobFinish(status="failed"))
                if rng.random() < 0.5:
                    return False
                drawn.add(RetryRequested(**step))
            case "cancel":
                drawn.add(CancelRequested()).finished(name, "cancelled", attempt).add(JobFinish(status="cancelled"))
                return False
            case _:
                return False
