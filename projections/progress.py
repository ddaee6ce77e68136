"""How far a job has come. Pure."""

from collections.abc import Mapping

import msgspec

from orchestrator.events import StepName
from orchestrator.step_kinds import default_weights
from projections.job_view import JobView

StepWeights = Mapping[StepName, float]

# What a job of one step reports as its stages: the parts in which the old service measured it.
_SINGLE_STEP_STAGES = (("queued_to_start", 0.1), ("sampling", 0.8), ("finalize", 0.1))


class Item(msgspec.Struct, frozen=True):
    """An item of the last step that has its artifact; progress is 1.0."""

    item_index: int
    progress: float


class Stage(msgspec.Struct, frozen=True):
    """A part of the whole, with its share; the shares sum to 1."""

    name: str
    weight: float


class Progress(msgspec.Struct, frozen=True, omit_defaults=True):
    """progress: 0 to 1, six digits. per_step: each step's own, where it was asked for."""

    progress: float
    items: list[Item]
    stages: list[Stage]
    per_step: dict[str, float] | None = None


def job_progress(job: JobView, weights: StepWeights | None = None, *, per_step: bool = False) -> Progress:
    """The sum of share * completed / count over the steps, exactly 1.0 when every artifact exists.

    weights: by kind of step; those of the table unless given. A step's share is its part of the weights of all steps.

    The view must have been loaded with its artifacts.
    """
    if not (job.steps and job.count):  # of a job whose first event can't be read, or is none of ours
        return Progress(0.0, [], [])
    done = {step.name: min(1.0, step.completed / job.count) for step in job.steps}
    if len(job.steps) == 1:
        [total] = done.values()
        stages = [Stage(name, weight) for name, weight in _SINGLE_STEP_STAGES]
    else:
        own = {name: (weights or default_weights())[name] for name in done}
        shares = {name: weight / (sum(own.values()) or 1.0) for name, weight in own.items()}
        total = 1.0 if min(done.values()) >= 1.0 else sum(shares[name] * part for name, part in done.items())
        stages = [Stage(name, share) for name, share in shares.items()]
    last = job.last_step.step_id
    items = sorted(artifact.item_index for artifact in job.artifacts if artifact.step_id == last)
    return Progress(
        round(total, 6),
        [Item(index, 1.0) for index in items],
        stages,
        {name: round(part, 6) for name, part in done.items()} if per_step else None,
    )
