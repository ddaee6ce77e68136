"""`dreamforge audit verify`: verifies events by their hashes, and images by their events."""

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
from dreamforge.backends import run_with_backends, run_with_database
from dreamforge.cli.console import FAILED, INVALID, NOT_FOUND, OK, print_message, print_result
from dreamforge.operations.anchoring import read_anchor_key
from dreamforge.settings import Settings
from eventstore.database import Database
from eventstore.integrity import anchors, bundle
from eventstore.integrity.anchors import Anchor
from eventstore.integrity.reader import AuditReader
from eventstore.integrity.verifier import AuditEvent, IntegrityViolation, LogIdentity, Verifier
from orchestrator import codec
from orchestrator.events import AnchorSigned, ArtifactEvent, ArtifactRewritten, ArtifactWritten

_MAX_CONCURRENT_READS = 8
"""How many images are read at once."""


class BadArtifact(msgspec.Struct, frozen=True, kw_only=True):
    """An image that is missing or differs from its event."""

    job_id: UUID
    version: int
    s3_key: str
    problem: str

    def __str__(self) -> str:
        """The object key, the event and the problem."""
        return f"{self.s3_key} ({self.job_id} version {self.version}): {self.problem}"


class VerificationResult(msgspec.Struct, frozen=True, kw_only=True):
    """How much was verified, and the flaws.

    anchors: how many the log was compared with. artifacts: null if images were not read.
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
        trusted.add(anchors.public_key_hex(read_anchor_key(settings.anchor_key)))
    try:
        given_anchors = [_load_anchor(file, trusted) for file in args.anchors]
        if isinstance(args.target, Path):
            return _verify_bundle(args, given_anchors)
        return _verify_log(args, settings, given_anchors, trusted)
    except anchors.BadAnchor as error:
        return print_message(FAILED, str(error))


def _load_anchor(file: Path, trusted_keys: set[str]) -> Anchor:
    """Read an anchor from a file, as `dreamforge audit anchor` prints it. Raises `BadAnchor`."""
    try:
        anchor = msgspec.json.decode(file.read_bytes(), type=Anchor)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise anchors.BadAnchor(f"{file} holds no anchor: {error}") from None
    anchors.check_signature(anchor, trusted_keys)
    return anchor


def _verify_bundle(args: argparse.Namespace, given_anchors: Sequence[Anchor]) -> int:
    if args.artifacts:
        return print_message(INVALID, "--artifacts needs the log itself; a bundle is verified with nothing else")
    with args.target.open("rb") as lines:
        report = bundle.verify_bundle(lines, given_anchors, codec.COLUMN_VOCABULARY)
    counts = f"{report.events:,} event(s) of {args.target}"
    if given_anchors and not report.flaws:
        counts += f", {report.vouched:,} of them vouched for by an anchor"
    print_result(args.output, report, _result_text(counts, report.flaws, is_empty=not report.events))
    return _exit_code(report.flaws, is_empty=not report.events)


def _verify_log(
    args: argparse.Namespace, settings: Settings, given_anchors: Sequence[Anchor], trusted_keys: set[str]
) -> int:
    async def verify(database: Database, store: ObjectStore | None) -> VerificationResult:
        reader = AuditReader(database)
        audit = _LogVerification(await reader.read_log_identity(), trusted_keys, store, whole=args.all)
        async for page in _all_pages(reader) if args.all else _job_pages(reader, args.target):
            await audit.verify_page(page)
        return await audit.make_result(reader, given_anchors)

    if args.artifacts:
        found = run_with_backends(settings, "audit", verify)
    else:
        found = run_with_database(settings, "audit", lambda database: verify(database, None))
    if not (args.all or found.events):
        return print_message(NOT_FOUND, f"the log has no job {args.target}")
    wrong = [*found.flaws, *found.bad_artifacts]
    print_result(args.output, found, _result_text(_counts_text(found), wrong, is_empty=not found.events))
    return _exit_code(wrong, is_empty=not found.events)


def _counts_text(result: VerificationResult) -> str:
    counts = {"event": result.events, "artifact": result.artifacts, "anchor": result.anchors}
    return ", ".join(f"{count:,} {name}(s)" for name, count in counts.items() if count is not None)


async def _all_pages(reader: AuditReader) -> AsyncIterator[Sequence[AuditEvent]]:
    for partition in await reader.nonempty_partitions():
        async for page in reader.read_pages(partition):
            yield page


async def _job_pages(reader: AuditReader, job_id: UUID) -> AsyncIterator[Sequence[AuditEvent]]:
    yield await reader.read_stream(job_id)


class _LogVerification:
    """Verifies pages of events and collects the flaws.

    trusted: public keys whose anchors in the log are checked. store: for reading images; None if they are not read.
    """

    def __init__(self, log: LogIdentity, trusted: set[str], store: ObjectStore | None, *, whole: bool) -> None:
        self._log_identity = log
        self._trusted = trusted
        self._verifier = Verifier(log, whole=whole, vocabulary=codec.COLUMN_VOCABULARY)
        self._store = store
        self._anchors: list[Anchor] = []
        self._events = 0
        self._artifacts = 0
        self._flaws: list[IntegrityViolation] = []
        self._bad_artifacts: dict[str, BadArtifact] = {}

    async def verify_page(self, page: Sequence[AuditEvent]) -> None:
        """Verify the next events, and their images."""
        for event in page:
            self._events += 1
            self._flaws += self._verifier.check_event(event)
            if event.code == AnchorSigned.code:
                self._collect_trusted_anchor(event)
        if self._store is not None:
            await self._check_images(self._store, [event for event in page if event.code == ArtifactWritten.code])
            for event in page:
                await self._check_rewritten_image(self._store, event)

    async def make_result(self, reader: AuditReader, given_anchors: Sequence[Anchor]) -> VerificationResult:
        """The result after the last page. given_anchors: checked in addition to those in the log."""
        all_anchors = [*given_anchors, *self._anchors]
        for anchor in all_anchors:
            chains = await reader.chain_hashes({end.partition: end.position for end in anchor.ends})
            self._flaws += anchors.find_violations(anchor, self._log_identity.log_id, chains)
        return VerificationResult(
            events=self._events,
            anchors=len(all_anchors),
            flaws=self._flaws + self._verifier.take_open_violations(),
            artifacts=None if self._store is None else self._artifacts,
            bad_artifacts=list(self._bad_artifacts.values()),
        )

    def _collect_trusted_anchor(self, event: AuditEvent) -> None:
        """Keep an anchor from the log if its signer is trusted."""
        signed = codec.decode_body_or_none(event)
        if isinstance(signed, AnchorSigned) and signed.anchor.public_key in self._trusted:
            anchors.check_signature(signed.anchor, self._trusted)
            self._anchors.append(signed.anchor)

    async def _check_images(self, store: ObjectStore, events: Sequence[AuditEvent]) -> None:
        semaphore = asyncio.Semaphore(_MAX_CONCURRENT_READS)

        async def read(event: AuditEvent) -> BadArtifact | None:
            async with semaphore:
                return await _check_image(store, event)

        self._artifacts += len(events)
        bad = [one for one in await asyncio.gather(*map(read, events)) if one is not None]
        self._bad_artifacts |= {one.s3_key: one for one in bad}

    async def _check_rewritten_image(self, store: ObjectStore, event: AuditEvent) -> None:
        """Check an image against its rewritten event, which replaces the original one after an erasure."""
        if event.code != ArtifactRewritten.code:
            return
        body = _artifact_event(event)
        if body is not None:
            self._bad_artifacts.pop(body.s3_key, None)
        bad = await _check_image(store, event)
        if bad is not None:
            self._bad_artifacts[bad.s3_key] = bad


def _artifact_event(event: AuditEvent) -> ArtifactEvent | None:
    body = codec.decode_body_or_none(event)
    return body if isinstance(body, ArtifactEvent) else None


async def _check_image(store: ObjectStore, event: AuditEvent) -> BadArtifact | None:
    """Compare the image of an event with the event. None if they match."""
    written = _artifact_event(event)
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


def _exit_code(flaws: Sequence[object], *, is_empty: bool) -> int:
    if flaws or not is_empty:
        return FAILED if flaws else OK
    return print_message(FAILED, "nothing was verified: there is no event; is this the log that was meant?")


def _result_text(counts: str, flaws: Sequence[object], *, is_empty: bool) -> RenderableType:
    if not flaws:
        return f"{'Empty' if is_empty else 'Intact'}: {counts}."
    return Group(*(escape(str(one)) for one in flaws), "", f"{len(flaws)} flaw(s) in {counts}.")
