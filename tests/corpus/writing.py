"""Histories that hold every event this release writes, and the file that keeps them for all later ones.

    python -m tests.corpus.writing tests/corpus/histories/release-N.jsonl

writes such a file for a release that changes what is written. Those that lie there are never changed: they are what
real logs hold.
"""

import asyncio
import sys
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec.structs import replace

from dreamforge import schema
from dreamforge.embedded import EmbeddedPostgres
from eventstore.database import Database
from eventstore.ids import new_id
from eventstore.integrity import anchors
from eventstore.integrity.bundle import BundleHeader, BundleWriter, read_events
from eventstore.integrity.reader import AuditReader
from eventstore.integrity.verifier import AuditEvent
from eventstore.log import Append, Batch, Log
from model_registry import view
from orchestrator import codec
from orchestrator.events import (
    AnchorSigned,
    CancelRequested,
    Category,
    DeviceMemory,
    DomainEvent,
    EngineLost,
    ErrorCode,
    JobErased,
    JobFinish,
    JobQuarantined,
    JobReleased,
    KeyCreated,
    KeyRevoked,
    Meta,
    ModelDisabled,
    ModelEnabled,
    ModelSelected,
    ModelVerified,
    OutboxPurged,
    OutboxRebuilt,
    PersonalText,
    Rendering,
    RetryReason,
    RetryRequested,
    SamplingBatch,
    SamplingOom,
    SamplingTick,
    StepError,
    StepRetry,
)
from projections import keys
from projections.job_view import fold_history
from tests.kit import History, event, model_registered

PLACE = Path(__file__).parent / "histories"


def folded(histories: list[AuditEvent]) -> dict[str, Any]:
    """What every job, model and key of some histories comes to, by its id, as plain values."""
    streams: dict[UUID, list[AuditEvent]] = {}
    for one in histories:
        streams.setdefault(one.stream_id, []).append(one)
    folds: dict[str, Callable[[list[AuditEvent]], Any]] = {
        "job": fold_history,
        "model": lambda own: codec.fold(view.evolve, map(codec.decode_event, own)),
        "key": lambda own: codec.fold(keys.evolve_key, map(codec.decode_event, own)),
    }
    views = {
        str(stream): folds[own[0].category](own) for stream, own in sorted(streams.items()) if own[0].category in folds
    }
    return dict(msgspec.json.decode(msgspec.json.encode(views, order="sorted")))


def read(file: Path) -> list[AuditEvent]:
    """The events of a file, by partition and position."""
    with file.open("rb") as lines:
        return list(read_events(lines))


def _retry(
    step_id: UUID, reason: RetryReason, code: ErrorCode | None, message: str | None, attempt: int = 1
) -> StepRetry:
    return StepRetry(
        step_id=step_id,
        step_name="generate",
        attempt=attempt,
        reason=reason,
        error_code=code,
        error_message=message,
        delay_s=1.5,
    )


def _jobs() -> list[History]:
    succeeded = History(count=2).started("generate")
    step_id = succeeded.step_id("generate")
    selected = ModelSelected(
        step_id=step_id, step_name="generate", attempt=1, model_id=None, engine="fake", source="fake"
    )
    succeeded.add(selected).wrote("generate", 0)
    succeeded.add(_retry(step_id, "failure", "oom", "no memory was left"), _retry(step_id, "hand_back", None, None))
    succeeded.add(_retry(step_id, "not_started", "internal", "the registry is broken", attempt=2))
    succeeded.started("generate", 3).wrote("generate", 1, attempt=3).finished("generate", attempt=3)
    succeeded.started("upscale").wrote("upscale", 0, 1).finished("upscale").add(JobFinish(status="succeeded"))

    failed = History(scale=None).started("generate")
    step_id = failed.step_id("generate")
    failed.add(
        StepError(
            step_id=step_id,
            step_name="generate",
            attempt=1,
            item_index=0,
            error_code="provider_error",
            error_message="the engine broke",
        )
    )
    failed.finished("generate", "failed").add(JobFinish(status="failed"))
    failed.add(RetryRequested(step_id=step_id, step_name="generate")).started("generate", 2)
    failed.wrote("generate", 0, attempt=2).finished("generate", attempt=2).add(JobFinish(status="succeeded"))

    cancelled = History(scale=4).started("generate").add(CancelRequested())
    cancelled.finished("generate", "cancelled").add(JobFinish(status="cancelled"))
    erased = History(scale=2).started("generate").wrote("generate", 0).finished("generate")
    erased.started("upscale").wrote("upscale", 0).finished("upscale").add(JobFinish(status="succeeded"))
    erased.add(erased.rewritten("generate", 0), erased.rewritten("upscale", 0))
    erased.add(JobErased(erased=["prompt", "negative_prompt", "metadata"]))
    return [succeeded, failed, cancelled, erased, _sampled(), _repaired(), *_quarantined()]


def _repaired() -> History:
    """A job whose generated image was gone, and was made again."""
    job = History(scale=2).started("generate").wrote("generate", 0).finished("generate").started("upscale")
    gone = StepError(
        step_id=job.step_id("upscale"),
        step_name="upscale",
        attempt=1,
        item_index=0,
        error_code="provider_error",
        error_message="the bucket holds no such object",
        lost=[0],
    )
    job.add(gone).finished("upscale", "failed").add(JobFinish(status="failed"))
    job.add(RetryRequested(step_id=job.step_id("generate"), step_name="generate", items=[0])).started("generate", 2)
    job.add(replace(job.rewritten("generate", 0), attempt=2)).finished("generate", attempt=2)
    job.started("upscale", 2).wrote("upscale", 0, attempt=2).finished("upscale", attempt=2)
    return job.add(JobFinish(status="succeeded"))


def _quarantined() -> list[History]:
    """Jobs that were set aside: one that still is, one that stays failed, one that went on."""
    reason = "event 2, 'step.start' in schema version 1, can't be decoded: Object missing required field `runner`"
    histories = [
        History(scale=None).started("generate").add(JobQuarantined(reader="orchestrator", at_version=2, reason=reason))
        for _ in range(3)
    ]
    histories[1].add(JobReleased(resume=False))
    histories[2].add(JobReleased(resume=True)).wrote("generate", 0).finished("generate")
    histories[2].add(JobFinish(status="succeeded"))
    return histories


def _sampled() -> History:
    """A job by a registered model, that ran out of memory and lost its engine on the way."""
    job = History(count=2, scale=None).started("generate")
    step: dict[str, Any] = {"step_id": job.step_id("generate"), "step_name": "generate", "attempt": 1}
    model_id, digest = new_id(), "5d" * 32
    memory = DeviceMemory(before=2_000_000_000, peak=7_500_000_000, after=2_100_000_000, total=8_000_000_000)
    job.add(
        ModelSelected(**step, model_id=model_id, engine="diffusers", source="file:///models/sd15", model_sha256=digest),
        SamplingTick(**step, items=[0, 1], done=7, of=30),
        SamplingOom(**step, items=[0, 1], size=2, next="smaller_batch", memory=memory),
        EngineLost(**step, items=[0, 1], reason="it was ended by SIGKILL"),
        SamplingBatch(**step, items=[0], size=1, memory=memory),
    )
    rendering = Rendering(
        engine="diffusers",
        device="cuda:NVIDIA H100",
        dtype="bfloat16",
        versions={"torch": "2.13.0", "diffusers": "0.42.1"},
        model_id=model_id,
        model_sha256=digest,
        scheduler="DDIMScheduler",
        batch_size=3,
        batch_index=1,
        measures=["smaller_batch"],
    )
    job.add(*(replace(job.item("generate", item), rendering=rendering) for item in range(2)))
    return job.finished("generate").add(JobFinish(status="succeeded"))


def _others() -> list[tuple[Category, tuple[DomainEvent, ...]]]:
    intact, damaged = (
        ModelVerified(intact=not problems, problems=problems) for problems in ([], ["weights.bin has changed"])
    )
    return [
        ("model", (model_registered(), ModelEnabled(), damaged, intact, ModelDisabled())),
        ("key", (KeyCreated(name="ci", scopes=["jobs", "audit"], digest="0" * 64), KeyRevoked())),
        ("outbox", (OutboxPurged(commands={"generate": 2}), OutboxRebuilt(commands={"generate": 2}))),
    ]


async def _written(url: str) -> list[AuditEvent]:
    database = Database(url)
    await schema.install(database)
    log = Log(database)
    meta = Meta(request_id="req-1", actor="runner-1", traceparent="00-" + "1" * 32 + "-" + "2" * 16 + "-01")
    for job in _jobs():
        private = PersonalText(prompt="ein Schloß, 城, 🏰", negative_prompt="fog", metadata={"order": "17"})
        facts = [
            event(fact.body, meta=meta, private=private if fact.version == 1 else None)
            for fact in job.events
            if fact.body is not None
        ]
        await log.commit(
            Batch(appends=[Append(stream=job.job_id, category="job", expected=0, events=tuple(facts), tenant="acme")])
        )
        if facts[-1].code == JobErased.code:
            await database.execute_once("select eventstore.erase($1)", job.job_id)
    for category, bodies in _others():
        facts = [event(body, meta=meta) for body in bodies]
        await log.commit(Batch(appends=[Append(stream=new_id(), expected=0, events=tuple(facts), category=category)]))
    head = await log.read_head()
    ends = {partition: (end.position, end.chain) for partition, end in head.ends.items()}
    signed = anchors.sign_anchor(Ed25519PrivateKey.generate(), head.log_id, ends, datetime.now(UTC))
    anchor = Append(stream=new_id(), expected=0, events=(event(AnchorSigned(anchor=signed)),), category="anchor")
    await log.commit(Batch(appends=[anchor]))

    archive = AuditReader(database)
    found = [
        one
        for partition in await archive.nonempty_partitions()
        async for page in archive.read_pages(partition)
        for one in page
    ]
    await database.close()
    return found


async def _bundle(url: str) -> tuple[bytes, list[AuditEvent]]:
    found = await _written(url)
    database = Database(url)
    now = datetime.now(UTC)
    log = await AuditReader(database).read_log_identity()
    await database.close()
    writer = BundleWriter(BundleHeader(log=log, exported_at=now, stream=None, since=now, private=True))
    return b"".join([writer.header_line(), *map(writer.event_line, found), writer.end_line()]), found


def main() -> None:
    """Write the file that is named."""
    with tempfile.TemporaryDirectory() as home:
        server = EmbeddedPostgres.start(Path(home))
        try:
            lines, found = asyncio.run(_bundle(server.url))
        finally:
            server.stop()
    file = Path(sys.argv[1])
    file.write_bytes(lines)
    file.with_suffix(".views.json").write_bytes(msgspec.json.format(msgspec.json.encode(folded(found))) + b"\n")


if __name__ == "__main__":
    main()
