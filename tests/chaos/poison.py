"""Jobs with unreadable events, or on which the code fails: each kind at a job's start, middle and end."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any
from uuid import UUID

import asyncpg
import httpx

from eventstore.ids import new_id
from tests import poison
from tests.chaos.deployment import Deployment
from tests.kit import connect, eventually

AWAY = (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError)
"""The errors of a connection that another disturbance breaks."""

BREAKING_SEEDS = {"job.created": 471100001, "step.finish": 471100002, "job.finish": 471100003}
"""The seeds of jobs on which the rules fail, by the event at which they fail."""

BROKEN_RULES = f"""
import orchestrator.process_manager

SEEDS = {BREAKING_SEEDS!r}
react = orchestrator.process_manager.react

def broken(state, body):
    if state.generate.seed == SEEDS["job.created"] and body.code == "job.created":
        raise RuntimeError("the rules break at a job's beginning")
    if state.generate.seed == SEEDS["step.finish"] and body.code == "step.finish" and state.steps[1].attempt == 0:
        raise RuntimeError("the rules break in a job's middle")
    if state.generate.seed == SEEDS["job.finish"] and body.code == "step.finish" and state.steps[1].attempt > 0:
        raise RuntimeError("the rules break at a job's end")
    return react(state, body)

orchestrator.process_manager.react = broken
"""
"""Code that a process imports first. It plants a bug in the orchestrator's rules."""

_CREATED = poison.CREATED
_BEGINNINGS: Sequence[dict[str, Any]] = (
    _CREATED | {"generate": _CREATED["generate"] | {"format": "avif"}},
    {name: value for name, value in _CREATED.items() if name != "generate"},
)
_MIDDLES: Sequence[dict[str, Any]] = ({"attempt": "first", "runner": "x"}, {"attempt": 1})
_ENDS: Sequence[dict[str, Any]] = ({"status": "abandoned"}, {})


async def _begin(deployment: Deployment, data: dict[str, Any]) -> None:
    """A job whose first event cannot be read."""
    job = new_id()
    await _append(deployment, job, "job.created", data)


async def _spoil(deployment: Deployment, code: str, data: dict[str, Any], *, at_end: bool) -> None:
    """A valid job with an unreadable event, while it runs or after its end."""
    job, step_id = await _submit(deployment)
    if at_end:
        await eventually(partial(_ended, deployment, job), within=600, what="the job's end")
    if code == "step.start":
        data = {"step_id": step_id, "step": "generate", **data}
    await _append(deployment, job, code, data)


async def _break(deployment: Deployment, seed: int) -> None:
    """A job on which the orchestrator's rules fail."""
    job, _ = await _submit(deployment, seed=seed)
    deployment.poisoned.add(job)


async def _append(deployment: Deployment, job: UUID, code: str, data: dict[str, Any]) -> None:
    deployment.poisoned.add(job)
    while True:
        try:
            return await poison.append_at_end(deployment.backend.url, job, code, data)
        except AWAY:
            await asyncio.sleep(0.2)


async def _submit(deployment: Deployment, **more: Any) -> tuple[UUID, str]:
    body = {"type": "generate", "prompt": "poison", "width": 32, "height": 32, "steps": 2, **more}
    headers = {"Idempotency-Key": str(new_id())}
    async with httpx.AsyncClient(timeout=30, trust_env=False) as http:
        while True:
            try:
                base = random.choice(deployment.fleet.apis() or [""])
                answer = await http.post(
                    f"{base}/v1/jobs", json=body | {"chain": {"upscale": {"scale": 2}}}, headers=headers
                )
                if answer.status_code == 202:
                    job = UUID(answer.json()["job"]["id"])
                    shown = await http.get(f"{base}/v1/jobs/{job}")
                    return job, shown.json()["steps"][0]["id"]
            except (httpx.TransportError, httpx.UnsupportedProtocol, LookupError):
                pass
            await asyncio.sleep(0.2)


async def _ended(deployment: Deployment, job: UUID) -> bool:
    try:
        connection = await connect(deployment.backend.url)
    except AWAY:
        return False
    try:
        newest = "select code from eventstore.events where stream_id = $1 order by version desc limit 1"
        return bool(await connection.fetchval(newest, job) == "job.finish")
    except AWAY:
        return False
    finally:
        connection.terminate()


POISONS: Sequence[Callable[[Deployment], Awaitable[None]]] = [
    *(partial(_begin, data=data) for data in _BEGINNINGS),
    *(partial(_spoil, code="step.start", data=data, at_end=False) for data in _MIDDLES),
    *(partial(_spoil, code="job.finish", data=data, at_end=True) for data in _ENDS),
    *(partial(_break, seed=seed) for seed in BREAKING_SEEDS.values()),
]
"""Each kind at each time."""
