"""Prometheus metrics of the runners. The names are those of the old service, so that its dashboards still work."""

from collections.abc import Sequence

from prometheus_client import Counter, Gauge, Histogram

from orchestrator.events import DomainEvent, StepFinish, StepStart
from orchestrator.step_kinds import STEP_KINDS


class _CountersByStep(dict[str, Counter]):
    """A counter for each kind of step, at 0 from the start."""

    def __init__(self, outcome: str, description: str) -> None:
        self._outcome = outcome
        self._meaning = description
        for step in STEP_KINDS:
            self[step]

    def __missing__(self, step: str) -> Counter:
        self[step] = Counter(f"jobs_{step}_{self._outcome}_total", self._meaning.format(step=step))
        return self[step]


STEPS_STARTED = _CountersByStep("started", "Attempts at {step} steps that started.")
STEPS_SUCCEEDED = _CountersByStep("succeeded", "{step} steps that succeeded.")
STEPS_FAILED = _CountersByStep("failed", "{step} steps that failed, after all attempts.")
FENCED_ATTEMPTS = Counter(
    "df_fenced_total", "Attempts whose results were rejected because a newer attempt had started."
)
LEASES_LOST = Counter("df_leases_lost_total", "Attempts that were abandoned because their lease had ended.")
ENGINE_LOST = Counter("df_engine_lost_total", "Engine processes that died, or hung and were killed.")
ENGINE_OOM = Counter("df_engine_oom_total", "How often an engine ran out of memory.")
ENGINE_MEMORY = Gauge("df_engine_memory_bytes", "Memory of the engine's device in use around its last batch.", ["when"])
BATCH_IMAGES = Histogram("df_batch_images", "Images per rendered batch.", buckets=(1, 2, 4, 8, 16, 32))
WORKER_READY = Gauge("df_worker_ready", "1 while a runner of this process claims commands, else 0.")


def count_outcomes(bodies: Sequence[DomainEvent]) -> None:
    """Count the steps' outcomes in committed events. A cancelled step counts as neither succeeded nor failed."""
    for body in bodies:
        match body:
            case StepStart():
                STEPS_STARTED[body.step_name].inc()
            case StepFinish(status="succeeded"):
                STEPS_SUCCEEDED[body.step_name].inc()
            case StepFinish(status="failed"):
                STEPS_FAILED[body.step_name].inc()
