"""What `dreamforge audit` does and answers: reads of the log itself, past the service and its read models."""

import argparse
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO
from uuid import UUID

import msgspec
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from api import responses, schemas
from dreamforge import anchoring, arguments, audit_erase, audit_reproduce, audit_verify, logs, show
from dreamforge.backends import actor, ask_backends, ask_database
from dreamforge.console import FAILED, INVALID, NOT_FOUND, OK, UNAVAILABLE, complain, print_answer
from dreamforge.embedded import EmbeddedError
from dreamforge.settings import Settings
from eventstore import codec
from eventstore.database import Database
from eventstore.errors import EventStoreError, Undecodable
from eventstore.events import Anchor, JobErased
from eventstore.integrity import anchors
from eventstore.integrity.bundle import Header, Writer
from eventstore.integrity.reader import AuditReader
from eventstore.integrity.verifier import AuditEvent
from eventstore.log import Log
from orchestrator.quarantine import mark
from orchestrator.service import Unreadable
from projections.comparison import Difference, differences
from projections.progress import progress
from projections.verifier import Disagreement, ReadModelVerifier
from projections.views import JobView, as_of, evolve, of_history
from runners.errors import ObjectStoreUnavailable
from runners.objects import ObjectStore


class Shown(msgspec.Struct, frozen=True, kw_only=True):
    """A job's history up to some point, and what it had come to there; no job where that was nothing yet."""

    job: schemas.Job | None
    events: list[schemas.LogEvent]


class Replayed(msgspec.Struct, frozen=True, kw_only=True):
    """One event, and the job after it."""

    version: int
    ts: datetime
    code: str
    progress: float
    job: JobView


class Replay(msgspec.Struct, frozen=True, kw_only=True):
    """A whole history, folded. disagreement: where the read model says otherwise; null if nowhere."""

    steps: list[Replayed]
    disagreement: Disagreement | None


class NoSuchJob(Exception):
    """The log has no such job; the message says which."""


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Run one command; returns the exit code."""
    logs.configure("warning", settings.log_format)
    commands: dict[str, Callable[[argparse.Namespace, Settings], int]] = {
        "show": _show,
        "replay": _replay,
        "diff": _diff,
        "export": _export,
        "verify": audit_verify.run,
        "erase": audit_erase.erase,
        "scrub": audit_erase.scrub,
        "reproduce": audit_reproduce.run,
        "anchor": _anchor,
        "key": _key,
    }
    try:
        return commands[args.action](args, settings)
    except NoSuchJob as error:
        return complain(NOT_FOUND, str(error))
    except (Undecodable, Unreadable) as error:
        return complain(FAILED, f"{error}; run `dreamforge audit verify {args.job}`")
    except (EmbeddedError, EventStoreError, ObjectStoreUnavailable) as error:
        return complain(UNAVAILABLE, str(error))


def _show(args: argparse.Namespace, settings: Settings) -> int:
    events = _until(_history(settings, args.job), args.at)
    job = of_history(events, lenient=True)
    answer = Shown(
        job=None if job is None else responses.job(job), events=[responses.log_event(event) for event in events]
    )
    plain = msgspec.to_builtins(answer)
    state = "The job was not there yet." if job is None else show.job_table(plain["job"])
    print_answer(args.output, answer, Group(show.history_table(plain["events"]), "", state, "", _private(events)))
    return OK


def _replay(args: argparse.Namespace, settings: Settings) -> int:
    async def ask(database: Database, _actor: str) -> tuple[list[AuditEvent], list[Disagreement]]:
        return await _stream(database, args.job), await ReadModelVerifier(database).check([args.job])

    events, found = ask_database(settings, "audit", ask)
    steps = []
    job: JobView | None = None
    strict = mark(events) is None
    for count, event in enumerate(events, 1):
        try:
            job = evolve(job, codec.decode_event(event)) if strict else of_history(events[:count], lenient=True)
        except Exception as error:  # a fold may break in any way on what it was not written for
            raise Unreadable(args.job, event.version, error) from error
        if job is not None:
            done = progress(job).progress
            steps.append(Replayed(version=event.version, ts=event.ts, code=event.code, progress=done, job=job))
    disagreement = found[0] if found else None
    verdict: RenderableType = "The read model agrees, as far as the projector has come."
    if disagreement is not None:
        verdict = _difference_table(disagreement.differences, "LOG", "READ MODEL")
    answer = Replay(steps=steps, disagreement=disagreement)
    print_answer(args.output, answer, Group(_replay_table(steps), "", verdict))
    if disagreement is not None:
        return complain(FAILED, f"the read model disagrees: {disagreement.problem}")
    return OK


def _diff(args: argparse.Namespace, settings: Settings) -> int:
    events = _history(settings, args.job)
    one, other = (of_history(_until(events, at), lenient=True) for at in (args.before, args.after))
    found = differences(one, other)
    print_answer(args.output, found, _difference_table(found, f"VERSION {args.before}", f"VERSION {args.after}"))
    return OK


def _export(args: argparse.Namespace, settings: Settings) -> int:
    async def write(database: Database, _actor: str) -> int:
        reader = AuditReader(database)
        header = Header(
            log=await reader.identity(),
            exported_at=datetime.now(UTC),
            job=args.job,
            since=args.since,
            private=args.private,
        )
        writer = Writer(header)
        events = _one(database, args.job) if args.job else _since(reader, args.since)
        first = await anext(events, None)  # nothing is written of a job that is not there
        with _opened(args.file) as file:
            file.write(writer.begin())
            if first is not None:
                file.write(writer.event(first))
            async for event in events:
                file.write(writer.event(event))
            file.write(writer.end())
        return writer.events

    count = ask_database(settings, "audit", write)
    return complain(OK, f"{count:,} event(s) exported to {args.file}")


def _anchor(_args: argparse.Namespace, settings: Settings) -> int:
    if settings.anchor_key is None:
        return complain(INVALID, "DF_ANCHOR_KEY names no key; make one by `dreamforge audit key FILE`, and name FILE")
    key = anchoring.read_key(settings.anchor_key)

    async def sign(database: Database, store: ObjectStore) -> Anchor:
        await store.ensure_bucket()
        return await anchoring.anchor(Log(database), store, key, actor())

    print(msgspec.json.encode(ask_backends(settings, "audit", sign)).decode())
    return OK


def _key(args: argparse.Namespace, _settings: Settings) -> int:
    try:
        key = anchoring.make_key(args.file)
    except FileExistsError:
        return complain(INVALID, f"{args.file} is there already, and is not written over")
    print(anchors.public_key(key))
    return OK


async def _one(database: Database, job: UUID) -> AsyncIterator[AuditEvent]:
    for event in await _stream(database, job):
        yield event


async def _since(reader: AuditReader, moment: datetime) -> AsyncIterator[AuditEvent]:
    for partition in await reader.partitions():
        after = await reader.start(partition, moment)
        async for page in reader.pages(partition, after=after):
            for event in page:
                yield event


def _history(settings: Settings, job: UUID) -> list[AuditEvent]:
    async def ask(database: Database, _actor: str) -> list[AuditEvent]:
        return await _stream(database, job)

    return ask_database(settings, "audit", ask)


async def _stream(database: Database, job: UUID) -> list[AuditEvent]:
    events = await AuditReader(database).stream(job)
    if not events or events[0].category != "job":
        raise NoSuchJob(f"the log has no job {job}")
    return events


def _until(events: Sequence[AuditEvent], at: int | datetime | None) -> Sequence[AuditEvent]:
    """The events up to a version, or as they were at a time; all, if neither is given."""
    if isinstance(at, datetime):
        return as_of(events, at)
    return [event for event in events if at is None or event.version <= at]


def _private(events: Sequence[AuditEvent]) -> str:
    """What is kept of the personal text, for people."""
    created = events[0] if events else None
    if created is None or created.private_digest is None:
        return ""
    if created.private is None:
        erased = next((event for event in events if event.code == JobErased.code), None)
        when = "" if erased is None else f" at {erased.ts:%Y-%m-%d %H:%M:%S} UTC by {codec.meta(erased).actor}"
        return f"Prompts and metadata were erased{when}; their hash stands."
    return f"Private: {escape(created.private)}"


def _replay_table(steps: Sequence[Replayed]) -> Table:
    table = Table("VERSION", "TIME", "CODE", "JOB", "STEPS", "PROGRESS", box=None)
    for step in steps:
        states = [f"{one.name} {one.status} {one.completed}/{step.job.count}" for one in step.job.steps]
        time = f"{step.ts:%H:%M:%S.%f}"[:-3]
        table.add_row(str(step.version), time, step.code, step.job.status, ", ".join(states), f"{step.progress:.1%}")
    return table


def _difference_table(found: Sequence[Difference], before: str, after: str) -> Table:
    table = Table("PLACE", before, after, box=None)
    for one in found:
        table.add_row(one.path, *(escape(_told(value)) for value in (one.before, one.after)))
    return table


def _told(value: Any) -> str:
    return "" if value is None else str(value)


@contextmanager
def _opened(file: Path) -> Iterator[BinaryIO]:
    """A file to write, which gets its name once it is whole; or stdout."""
    if file == arguments.STDIN:
        yield sys.stdout.buffer
        return
    part = file.with_name(f"{file.name}.part")
    with part.open("wb") as opened:
        yield opened
    part.replace(file)
