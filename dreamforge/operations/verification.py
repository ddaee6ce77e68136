"""What `dreamforge audit verify` does: events against their chains, images against their events."""

import argparse
import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from uuid import UUID

import msgspec
from rich.console import Group, RenderableType
from rich.markup import escape

from artifacts.errors import ObjectMissing
from artifacts.object_store import ObjectStore, StoredObject
from dreamforge.backends import ask_backends, ask_database
from dreamforge.cli.console import FAILED, INVALID, NOT_FOUND, OK, complain, print_answer
from dreamforge.operations.anchoring import read_key
from dreamforge.settings import Settings
from eventstore.database import Database
from eventstore.integrity import anchors, bundle
from eventstore.integrity.anchors import Anchor
from eventstore.integrity.reader import AuditReader
from eventstore.integrity.verifier import AuditEvent, IntegrityViolation, LogIdentity, Verifier
from orchestrator import codec
from orchestrator.events.operations import AnchorSigned
from orchestrator.events.steps import ArtifactEvent, ArtifactRewritten, ArtifactWritten

_AT_ONCE = 8
"""How many images are read at a time."""


class BadArtifact(msgspec.Struct, frozen=True, kw_only=True):
    """An image that is not what its event says, or is not there."""

    job_id: UUID
    version: int
    s3_key: str
    problem: str

    def __str__(self) -> str:
        """The place and the problem."""
        return f"{self.s3_key} ({self.job_id} version {self.version}): {self.problem}"


class Verified(msgspec.Struct, frozen=True, kw_only=True):
    """What was looked at, and what is wrong with it.

    anchors: how many the log was held against. artifacts: null where they were not to be read.
    """

    events: int
    anchors: int
    flaws: list[IntegrityViolation]
    artifacts: int | None
    bad_artifacts: list[BadArtifact]


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Verify a job, the whole log, or an exported file; returns the exit code."""
    trusted = set(args.keys)
    if settings.anchor_key is not None:
        trusted.add(anchors.public_key(read_key(settings.anchor_key)))
    try:
        given = [_given(file, trusted) for file in args.anchors]
        if isinstance(args.target, Path):
            return _bundle(args, given)
        return _log(args, settings, given, trusted)
    except anchors.BadAnchor as error:
        return complain(FAILED, str(error))


def _given(file: Path, trusted: set[str]) -> Anchor:
    """The anchor of a file, as `dreamforge audit anchor` printed it."""
    try:
        anchor = msgspec.json.decode(file.read_bytes(), type=Anchor)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise anchors.BadAnchor(f"{file} holds no anchor: {error}") from None
    anchors.check(anchor, trusted)
    return anchor


def _bundle(args: argparse.Namespace, given: Sequence[Anchor]) -> int:
    if args.artifacts:
        return complain(INVALID, "--artifacts needs the log itself; a bundle is verified with nothing else")
    with args.target.open("rb") as lines:
        report = bundle.verify(lines, given, codec.VOCABULARY)
    counts = f"{report.events:,} event(s) of {args.target}"
    if given and not report.flaws:
        counts += f", {report.vouched:,} of them vouched for by an anchor"
    print_answer(args.output, report, _verdict(counts, report.flaws, empty=not report.events))
    return _code(report.flaws, empty=not report.events)


def _log(args: argparse.Namespace, settings: Settings, given: Sequence[Anchor], trusted: set[str]) -> int:
    async def verify(database: Database, store: ObjectStore | None) -> Verified:
        reader = AuditReader(database)
        audit = _Audit(await reader.identity(), trusted, store, whole=args.all)
        async for page in _whole(reader) if args.all else _one(reader, args.target):
            await audit.check(page)
        return await audit.report(reader, given)

    if args.artifacts:
        found = ask_backends(settings, "audit", verify)
    else:
        found = ask_database(settings, "audit", lambda database, _: verify(database, None))
    if not (args.all or found.events):
        return complain(NOT_FOUND, f"the log has no job {args.target}")
    wrong = [*found.flaws, *found.bad_artifacts]
    print_answer(args.output, found, _verdict(_counts(found), wrong, empty=not found.events))
    return _code(wrong, empty=not found.events)


def _counts(found: Verified) -> str:
    counts = {"event": found.events, "artifact": found.artifacts, "anchor": found.anchors}
    return ", ".join(f"{count:,} {name}(s)" for name, count in counts.items() if count is not None)


async def _whole(reader: AuditReader) -> AsyncIterator[Sequence[AuditEvent]]:
    for partition in await reader.partitions():
        async for page in reader.pages(partition):
            yield page


async def _one(reader: AuditReader, job: UUID) -> AsyncIterator[Sequence[AuditEvent]]:
    yield await reader.stream(job)


class _Audit:
    """Counts and collects.

    trusted: whose anchors count, among those that stand in the log. store: where the images are read from; None where
    they are not.
    """

    def __init__(self, log: LogIdentity, trusted: set[str], store: ObjectStore | None, *, whole: bool) -> None:
        self._log = log
        self._trusted = trusted
        self._verifier = Verifier(log, whole=whole, vocabulary=codec.VOCABULARY)
        self._store = store
        self._anchors: list[Anchor] = []
        self._events = 0
        self._artifacts = 0
        self._flaws: list[IntegrityViolation] = []
        self._bad: dict[str, BadArtifact] = {}

    async def check(self, page: Sequence[AuditEvent]) -> None:
        """Verify the next events, and their images."""
        for event in page:
            self._events += 1
            self._flaws += self._verifier.check(event)
            if event.code == AnchorSigned.code:
                self._note(event)
        if self._store is not None:
            await self._read(self._store, [event for event in page if event.code == ArtifactWritten.code])
            for event in page:
                await self._forgive(self._store, event)

    async def report(self, reader: AuditReader, given: Sequence[Anchor]) -> Verified:
        """What there is to say, now that no event is left: by the chains, by anchors given, by those in the log."""
        held = [*given, *self._anchors]
        for anchor in held:
            chains = await reader.chains({end.partition: end.position for end in anchor.ends})
            self._flaws += anchors.differences(anchor, self._log.log_id, chains)
        return Verified(
            events=self._events,
            anchors=len(held),
            flaws=self._flaws + self._verifier.end(),
            artifacts=None if self._store is None else self._artifacts,
            bad_artifacts=list(self._bad.values()),
        )

    def _note(self, event: AuditEvent) -> None:
        """Keep an anchor that stands in the log, if its signer is trusted."""
        signed = codec.body_if_readable(event)
        if isinstance(signed, AnchorSigned) and signed.anchor.public_key in self._trusted:
            anchors.check(signed.anchor, self._trusted)
            self._anchors.append(signed.anchor)

    async def _read(self, store: ObjectStore, events: Sequence[AuditEvent]) -> None:
        turns = asyncio.Semaphore(_AT_ONCE)

        async def read(event: AuditEvent) -> BadArtifact | None:
            async with turns:
                return await _bad(store, event)

        self._artifacts += len(events)
        bad = [one for one in await asyncio.gather(*map(read, events)) if one is not None]
        self._bad |= {one.s3_key: one for one in bad}

    async def _forgive(self, store: ObjectStore, event: AuditEvent) -> None:
        """What differs from what was written is right where it is what erasure left; and wrong where it is not."""
        if event.code != ArtifactRewritten.code:
            return
        body = _artifact(event)
        if body is not None:
            self._bad.pop(body.s3_key, None)
        bad = await _bad(store, event)
        if bad is not None:
            self._bad[bad.s3_key] = bad


def _artifact(event: AuditEvent) -> ArtifactEvent | None:
    body = codec.body_if_readable(event)
    return body if isinstance(body, ArtifactEvent) else None


async def _bad(store: ObjectStore, event: AuditEvent) -> BadArtifact | None:
    """What is wrong with the image of an event; None where nothing is."""
    written = _artifact(event)
    if written is None:
        return None
    try:
        found = await store.describe(written.s3_key)
    except ObjectMissing as error:
        problem = str(error)
    else:
        if found == StoredObject(written.bytes, written.sha256):
            return None
        problem = (
            f"holds {found.size:,} bytes of SHA-256 {found.sha256}; written were {written.bytes:,} of {written.sha256}"
        )
    return BadArtifact(job_id=event.stream_id, version=event.version, s3_key=written.s3_key, problem=problem)


def _code(wrong: Sequence[object], *, empty: bool) -> int:
    if wrong or not empty:
        return FAILED if wrong else OK
    return complain(FAILED, "nothing was verified: there is no event; is this the log that was meant?")


def _verdict(counts: str, wrong: Sequence[object], *, empty: bool) -> RenderableType:
    if not wrong:
        return f"{'Empty' if empty else 'Intact'}: {counts}."
    return Group(*(escape(str(one)) for one in wrong), "", f"{len(wrong)} flaw(s) in {counts}.")
