"""`dreamforge audit`: reads the event log directly, without the service and its read models."""

import argparse
import re
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO
from uuid import UUID

import msgspec
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from api import responses, schemas
from artifacts.errors import ObjectStoreUnavailable
from artifacts.object_store import ObjectStore
from dreamforge.backends import run_with_backends, run_with_database, user_at_host
from dreamforge.cli import arguments, show
from dreamforge.cli.arguments import CommandParser
from dreamforge.cli.console import FAILED, INVALID, NOT_FOUND, OK, UNAVAILABLE, plain_table, print_message, print_result
from dreamforge.cli.handlers import Handler, set_handlers
from dreamforge.operations import anchoring, erasure, reproduction, verification
from dreamforge.settings import Settings
from eventstore.database import Database
from eventstore.errors import UndecodableEvent
from eventstore.integrity import anchors
from eventstore.integrity.anchors import Anchor
from eventstore.integrity.bundle import BundleHeader, BundleWriter
from eventstore.integrity.reader import AuditReader
from eventstore.integrity.verifier import AuditEvent
from eventstore.log import Log
from orchestrator import codec
from orchestrator.events import JobErased
from orchestrator.quarantine import last_quarantine_mark
from orchestrator.service import UnreadableJob
from projections.comparison import Difference, view_differences
from projections.job_view import JobView, evolve_view, fold_history, history_as_of
from projections.progress import job_progress
from projections.verifier import Disagreement, ReadModelVerifier


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `dreamforge audit`."""
    actions = arguments.add_subcommands(parser)
    output = arguments.output_option_parser(json_alias=True)

    show = actions.add_parser("show", parents=[output], help="a job's history, and what it had come to")
    _add_job_argument(show)
    show.add_argument(
        "--at",
        type=_parse_version_or_time,
        metavar="VERSION|TIME",
        help="as it was after this version, or at this time; not as it is",
    )
    replay = actions.add_parser(
        "replay", parents=[output], help="fold a job's history event by event, and hold the read model against it"
    )
    _add_job_argument(replay)
    diff = actions.add_parser("diff", parents=[output], help="what changed about a job between two of its versions")
    _add_job_argument(diff)
    for name, default in (("before", "A"), ("after", "B")):
        diff.add_argument(name, type=_parse_version, metavar=default, help="a version; 0 is before the job was there")
    _add_verify_parser(actions, output)
    _add_export_parser(actions, output)
    erase = actions.add_parser(
        "erase", parents=[output], help="take the prompts and metadata of jobs that have ended away, for good"
    )
    erase.add_argument("jobs", nargs="+", type=_parse_job_id, metavar="JOB", help="the job's id")
    actions.add_parser(
        "scrub", parents=[output], help="write the tables anew, so that nothing erased stays in the database's files"
    )
    reproduce = actions.add_parser(
        "reproduce", parents=[output], help="render a job's images again, and compare; exits with 1 if one differs"
    )
    _add_job_argument(reproduce)
    actions.add_parser("anchor", help="sign the log's heads; the anchor is printed, and kept in the log and in S3")
    key = actions.add_parser("key", help="make a key that signs anchors, and print its public half")
    key.add_argument("file", type=Path, metavar="FILE", help="where to write it; name it in DF_ANCHOR_KEY")
    set_handlers(
        actions,
        {
            "show": _with_verify_advice(_show_job),
            "replay": _with_verify_advice(_replay_job),
            "diff": _with_verify_advice(_compare_job_versions),
            "export": _with_verify_advice(_export_bundle),
            "verify": verification.run,
            "erase": erasure.erase_jobs,
            "scrub": erasure.scrub_tables,
            "reproduce": _with_verify_advice(reproduction.run),
            "anchor": _sign_anchor,
            "key": _create_key,
        },
        errors={NoSuchJob: NOT_FOUND, ObjectStoreUnavailable: UNAVAILABLE},
    )


def _add_verify_parser(actions: "argparse._SubParsersAction[CommandParser]", output: CommandParser) -> None:
    verify = actions.add_parser(
        "verify", parents=[output], help="hold every event against its hash chains; exits with 1 if one does not fit"
    )
    verified = verify.add_mutually_exclusive_group(required=True)
    verified.add_argument(
        "target", nargs="?", type=_parse_job_id_or_file, metavar="JOB|BUNDLE", help="one job, or an exported file"
    )
    verified.add_argument("--all", action="store_true", help="the whole log")
    verify.add_argument(
        "--anchor",
        dest="anchors",
        action="append",
        default=[],
        type=arguments.parse_existing_file,
        metavar="FILE",
        help="hold it against this anchor too; may be repeated",
    )
    verify.add_argument(
        "--key",
        dest="keys",
        action="append",
        default=[],
        type=_parse_public_key,
        metavar="HEX",
        help="whose anchors to trust; may be repeated (the public key of DF_ANCHOR_KEY)",
    )
    verify.add_argument("--artifacts", action="store_true", help="read every image too, its size and SHA-256")


def _add_export_parser(actions: "argparse._SubParsersAction[CommandParser]", output: CommandParser) -> None:
    export = actions.add_parser(
        "export", parents=[output], help="write histories into a file that verifies with no database"
    )
    exported = export.add_mutually_exclusive_group(required=True)
    exported.add_argument("job", nargs="?", type=_parse_job_id, metavar="JOB", help="one job")
    exported.add_argument("--since", type=arguments.parse_time, metavar="TIME", help="all that was recorded since")
    export.add_argument("--private", action="store_true", help="with prompts and metadata: erasure can't reach them")
    export.add_argument(
        "-o", dest="file", type=Path, required=True, metavar="FILE", help="where to write it; - for stdout"
    )


def _add_job_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job", type=_parse_job_id, metavar="JOB", help="the job's id")


def _parse_job_id(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no id of a job") from None


def _parse_version(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise argparse.ArgumentTypeError(f"{text!r} is no version; it must be a whole number from 0 on")
    return int(text)


def _parse_version_or_time(text: str) -> int | datetime:
    return _parse_version(text) if text.isdigit() else arguments.parse_time(text)


def _parse_job_id_or_file(text: str) -> UUID | Path:
    try:
        return UUID(text)
    except ValueError:
        if not Path(text).is_file():
            raise argparse.ArgumentTypeError(f"{text!r} is neither the id of a job nor a file") from None
        return Path(text)


def _parse_public_key(text: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{64}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no public key; it has 64 of 0-9 and a-f")
    return text


class JobHistory(msgspec.Struct, frozen=True, kw_only=True):
    """A job's events up to a point, and its state there; null before its first event."""

    job: schemas.Job | None
    events: list[schemas.LogEvent]


class ReplayStep(msgspec.Struct, frozen=True, kw_only=True):
    """One event, and the job's view after it."""

    version: int
    ts: datetime
    code: str
    progress: float
    job: JobView


class JobReplay(msgspec.Struct, frozen=True, kw_only=True):
    """A job's history, folded step by step. disagreement: with the read model; null if there is none."""

    steps: list[ReplayStep]
    disagreement: Disagreement | None


class NoSuchJob(Exception):
    """The log has no job with this id."""


def _with_verify_advice(handler: Handler) -> Handler:
    """Wrap a handler: if the job's history cannot be read, the message says which command finds the cause."""

    def run(args: argparse.Namespace, settings: Settings) -> int:
        try:
            return handler(args, settings)
        except (UndecodableEvent, UnreadableJob) as error:
            return print_message(FAILED, f"{error}; run `dreamforge audit verify {args.job}`")

    return run


def _show_job(args: argparse.Namespace, settings: Settings) -> int:
    events = _events_until(_load_job_events(settings, args.job), args.at)
    job = fold_history(events, lenient=True)
    answer = JobHistory(
        job=None if job is None else responses.job_detail_answer(job),
        events=[responses.log_event_answer(event) for event in events],
    )
    plain = msgspec.to_builtins(answer)
    state = "The job was not there yet." if job is None else show.job_table(plain["job"])
    print_result(
        args.output, answer, Group(show.history_table(plain["events"]), "", state, "", _private_text_line(events))
    )
    return OK


def _replay_job(args: argparse.Namespace, settings: Settings) -> int:
    async def ask(database: Database) -> tuple[list[AuditEvent], list[Disagreement]]:
        return await _read_job_events(database, args.job), await ReadModelVerifier(database).check_jobs([args.job])

    events, found = run_with_database(settings, "audit", ask)
    steps = []
    job: JobView | None = None
    strict = last_quarantine_mark(events) is None
    for count, event in enumerate(events, 1):
        try:
            job = evolve_view(job, codec.decode_event(event)) if strict else fold_history(events[:count], lenient=True)
        except Exception as error:  # a fold may raise anything on unexpected data
            raise UnreadableJob(args.job, event.version, error) from error
        if job is not None:
            done = job_progress(job).progress
            steps.append(ReplayStep(version=event.version, ts=event.ts, code=event.code, progress=done, job=job))
    disagreement = found[0] if found else None
    verdict: RenderableType = "The read model agrees, as far as the projector has come."
    if disagreement is not None:
        verdict = _difference_table(disagreement.differences, "LOG", "READ MODEL")
    answer = JobReplay(steps=steps, disagreement=disagreement)
    print_result(args.output, answer, Group(_replay_table(steps), "", verdict))
    if disagreement is not None:
        return print_message(FAILED, f"the read model disagrees: {disagreement.problem}")
    return OK


def _compare_job_versions(args: argparse.Namespace, settings: Settings) -> int:
    events = _load_job_events(settings, args.job)
    before, after = (fold_history(_events_until(events, at), lenient=True) for at in (args.before, args.after))
    found = view_differences(before, after)
    print_result(args.output, found, _difference_table(found, f"VERSION {args.before}", f"VERSION {args.after}"))
    return OK


def _export_bundle(args: argparse.Namespace, settings: Settings) -> int:
    async def write(database: Database) -> int:
        reader = AuditReader(database)
        header = BundleHeader(
            log=await reader.read_log_identity(),
            exported_at=datetime.now(UTC),
            stream=args.job,
            since=args.since,
            private=args.private,
        )
        writer = BundleWriter(header)
        events = _iterate_job_events(database, args.job) if args.job else _iterate_events_since(reader, args.since)
        first = await anext(events, None)  # raises NoSuchJob before the file is created
        with _open_output_file(args.file) as file:
            file.write(writer.header_line())
            if first is not None:
                file.write(writer.event_line(first))
            async for event in events:
                file.write(writer.event_line(event))
            file.write(writer.end_line())
        return writer.events

    count = run_with_database(settings, "audit", write)
    return print_message(OK, f"{count:,} event(s) exported to {args.file}")


def _sign_anchor(_args: argparse.Namespace, settings: Settings) -> int:
    if settings.anchor_key is None:
        return print_message(
            INVALID, "DF_ANCHOR_KEY names no key; make one by `dreamforge audit key FILE`, and name FILE"
        )
    key = anchoring.read_anchor_key(settings.anchor_key)

    async def sign(database: Database, store: ObjectStore) -> Anchor:
        await store.ensure_bucket()
        return await anchoring.sign_anchor(Log(database), store, key, user_at_host())

    print(msgspec.json.encode(run_with_backends(settings, "audit", sign)).decode())
    return OK


def _create_key(args: argparse.Namespace, _settings: Settings) -> int:
    try:
        key = anchoring.create_anchor_key(args.file)
    except FileExistsError:
        return print_message(INVALID, f"{args.file} is there already, and is not written over")
    print(anchors.public_key_hex(key))
    return OK


async def _iterate_job_events(database: Database, job_id: UUID) -> AsyncIterator[AuditEvent]:
    for event in await _read_job_events(database, job_id):
        yield event


async def _iterate_events_since(reader: AuditReader, since: datetime) -> AsyncIterator[AuditEvent]:
    for partition in await reader.nonempty_partitions():
        after = await reader.position_before(partition, since)
        async for page in reader.read_pages(partition, after=after):
            for event in page:
                yield event


def _load_job_events(settings: Settings, job_id: UUID) -> list[AuditEvent]:
    return run_with_database(settings, "audit", lambda database: _read_job_events(database, job_id))


async def _read_job_events(database: Database, job_id: UUID) -> list[AuditEvent]:
    events = await AuditReader(database).read_stream(job_id)
    if not events or events[0].category != "job":
        raise NoSuchJob(f"the log has no job {job_id}")
    return events


def _events_until(events: Sequence[AuditEvent], version_or_time: int | datetime | None) -> Sequence[AuditEvent]:
    """The events up to a version or a time; all if neither is given."""
    if isinstance(version_or_time, datetime):
        return history_as_of(events, version_or_time)
    return [event for event in events if version_or_time is None or event.version <= version_or_time]


def _private_text_line(events: Sequence[AuditEvent]) -> str:
    """A line about the job's private text."""
    created = events[0] if events else None
    if created is None or created.private_digest is None:
        return ""
    if created.private is None:
        erased = next((event for event in events if event.code == JobErased.code), None)
        when = "" if erased is None else f" at {erased.ts:%Y-%m-%d %H:%M:%S} UTC by {codec.decode_meta(erased).actor}"
        return f"Prompts and metadata were erased{when}; their hash stands."
    return f"Private: {escape(created.private)}"


def _replay_table(steps: Sequence[ReplayStep]) -> Table:
    rows = []
    for step in steps:
        states = [f"{one.name} {one.status} {one.completed}/{step.job.count}" for one in step.job.steps]
        time = f"{step.ts:%H:%M:%S.%f}"[:-3]
        rows.append((step.version, time, step.code, step.job.status, ", ".join(states), f"{step.progress:.1%}"))
    return plain_table("VERSION", "TIME", "CODE", "JOB", "STEPS", "PROGRESS", rows=rows)


def _difference_table(differences_found: Sequence[Difference], before: str, after: str) -> Table:
    return plain_table("PLACE", before, after, rows=[(one.path, one.before, one.after) for one in differences_found])


@contextmanager
def _open_output_file(file: Path) -> Iterator[BinaryIO]:
    """A file to write, which is renamed to its final name when it is complete; or stdout."""
    if file == arguments.STDIN_PATH:
        yield sys.stdout.buffer
        return
    part = file.with_name(f"{file.name}.part")
    with part.open("wb") as opened:
        yield opened
    part.replace(file)
