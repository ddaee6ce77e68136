"""Fills a log by real appends, a process of its own: whole histories of jobs, many to a call of `Log.commit`.

Calls that write to the same partition of the log wait for each other. So each connection has partitions of its own.
"""

import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from uuid import UUID

import msgspec
import uvloop

from eventstore.database import Database
from eventstore.events import NewEvent
from eventstore.ids import new_id
from eventstore.log import Append, Batch, Log
from orchestrator import codec
from orchestrator.events import (
    ArtifactWritten,
    DomainEvent,
    JobCreated,
    JobFinish,
    Meta,
    ModelSelected,
    PersonalText,
    PlannedStep,
    StepFinish,
    StepRetry,
    StepStart,
)
from orchestrator.parameters import GenerateParams, UpscaleParams
from tests.bench.work import PROMPT, SCALE, SIDE

EVENTS_PER_JOB = 15
"""Of a job that was not retried."""
IMAGES = 4
RETRIED_EVERY = 20
_STREAMS_PER_CALL = 50
_META = Meta(actor="runner-1")
_PERSONAL = PersonalText(prompt=PROMPT, metadata={"client": "bench"})
_GENERATE = GenerateParams(
    width=SIDE,
    height=SIDE,
    steps=30,
    guidance=7.0,
    scheduler=None,
    format="png",
    embed_metadata=True,
    seed=0,
    count=IMAGES,
    model_id=None,
    provider=None,
    engine=None,
)
_UPSCALE = UpscaleParams(scale=2, impl="auto", strict_scale=False)
_SHA256 = "5f" * 32


class Fill(msgspec.Struct, frozen=True):
    """So many jobs, by this one of so many connections, numbered from 0: a power of two of them."""

    db_url: str
    jobs: int
    connection: int
    connections: int


class Filled(msgspec.Struct, frozen=True):
    """What was written, and in how many seconds."""

    events: int
    seconds: float


def history(number: int) -> list[DomainEvent]:
    """The events of a chained job of four images. The generate step of every 20th job fails once and is tried again."""
    generate, upscale = (PlannedStep(step_id=new_id(), name=name) for name in ("generate", "upscale"))
    params = msgspec.structs.replace(_GENERATE, seed=number)
    created = JobCreated(type="generate", steps=[generate, upscale], generate=params, upscale=_UPSCALE)
    events: list[DomainEvent] = [created]
    attempt = 1
    if number % RETRIED_EVERY == 0:
        events += _begun(generate, attempt)
        events.append(_retry(generate, attempt))
        attempt += 1
    events += [*_begun(generate, attempt), *_written(generate, attempt, SIDE)]
    events += [_start(upscale, 1), *_written(upscale, 1, SIDE * SCALE)]
    return [*events, JobFinish(status="succeeded")]


def _start(step: PlannedStep, attempt: int) -> StepStart:
    return StepStart(step_id=step.step_id, step_name=step.name, attempt=attempt, runner="runner-1")


def _begun(step: PlannedStep, attempt: int) -> list[DomainEvent]:
    chosen = ModelSelected(
        step_id=step.step_id, step_name=step.name, attempt=attempt, model_id=None, engine="fake", source="default"
    )
    return [_start(step, attempt), chosen]


def _retry(step: PlannedStep, attempt: int) -> StepRetry:
    return StepRetry(
        step_id=step.step_id,
        step_name=step.name,
        attempt=attempt,
        reason="failure",
        error_code="infra_unavailable",
        error_message="the object store does not answer",
        delay_s=1.0,
    )


def _written(step: PlannedStep, attempt: int, side: int) -> Iterator[DomainEvent]:
    for index in range(IMAGES):
        yield ArtifactWritten(
            step_id=step.step_id,
            step_name=step.name,
            attempt=attempt,
            item_index=index,
            artifact_id=new_id(),
            format="png",
            width=side,
            height=side,
            seed=index + 1,
            s3_key=f"dreamforge/default/20261123T120000Z/{step.step_id}/{step.name}/{index}.png",
            bytes=10_000,
            sha256=_SHA256,
        )
    yield StepFinish(step_id=step.step_id, step_name=step.name, attempt=attempt, status="succeeded")


def new_events(bodies: list[DomainEvent]) -> tuple[NewEvent, ...]:
    """The events of a whole history, as they are appended."""
    now = datetime.now(UTC)
    first = codec.new_event(new_id(), now, bodies[0], _META, _PERSONAL)
    return (first, *(codec.new_event(new_id(), now, body, _META) for body in bodies[1:]))


def stream_id(partition: int, partitions: int) -> UUID:
    """A new job's id, in a partition of the log."""
    return UUID(int=new_id().int & ~(partitions - 1) | partition)


async def fill(given: Fill) -> Filled:
    """Append the histories. Raises RuntimeError if one is not accepted."""
    database = Database(given.db_url, max_connections=1)
    log = Log(database)
    partitions = await log.partitions()
    own = range(given.connection, partitions, given.connections)
    began, events = time.perf_counter(), 0
    for first in range(1, given.jobs + 1, _STREAMS_PER_CALL):
        appends = [
            Append(
                stream=stream_id(own[number % len(own)], partitions),
                category="job",
                expected=0,
                events=new_events(history(number)),
            )
            for number in range(first, min(first + _STREAMS_PER_CALL, given.jobs + 1))
        ]
        outcome = await log.commit(Batch(appends=appends))
        if any(one.verdict != "accepted" for one in outcome.streams.values()):
            raise RuntimeError(f"not accepted: {outcome.streams}")
        events += sum(len(append.events) for append in appends)
    await database.close()
    return Filled(events, time.perf_counter() - began)


def _main() -> None:
    for line in sys.stdin:
        result = uvloop.run(fill(msgspec.json.decode(line, type=Fill)))
        sys.stdout.write(msgspec.json.encode(result).decode() + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _main()
