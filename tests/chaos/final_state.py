"""Checks that the final state is as without disturbances, from the database and the object store themselves.

Each check answers a sentence for each thing that it finds wrong.
"""

import asyncio
import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import pairwise, product
from typing import TypeVar
from uuid import UUID

import msgspec

from artifacts.errors import ObjectMissing
from artifacts.object_store import ObjectStore, S3Config
from eventstore.database import Database
from eventstore.events import RecordedEvent
from eventstore.log import EVENT_COLUMNS, recorded_events
from orchestrator import codec
from orchestrator.events import (
    ArtifactWritten,
    DecodedEvent,
    DomainEvent,
    JobCreated,
    RetryRequested,
    StepFinish,
    StepRetry,
    StepStart,
)
from orchestrator.quarantine import is_quarantined
from projections.job_view import JobView, MissingPrecedingEvent, fold_events, fold_history
from projections.rows import JobRows, rows_to_view
from tests.kit import TERMINAL
from tests.store.test_hash_chain import broken

B = TypeVar("B", bound=DomainEvent)

_EVENTS = f"select {EVENT_COLUMNS} from eventstore.events order by partition, position"
_ROWS = """
select json_build_object('job', row_to_json(j),
    'steps', coalesce((
        select json_agg(s order by s.ordinal) from readmodel.steps s where s.job_id = j.job_id), '[]'),
    'artifacts', coalesce((
        select json_agg(a order by s.ordinal, a.item_index)
        from readmodel.artifacts a join readmodel.steps s using (step_id) where a.job_id = j.job_id), '[]')) as rows
from readmodel.jobs j
"""
_SIZES = (
    "select (select count(*) from readmodel.steps) as steps, (select count(*) from readmodel.artifacts) as artifacts"
)
_COMMANDS = """
select format('%s is in the queue of generate', message) as found from pgmq.q_generate
union all select format('%s is in the queue of upscale', message) from pgmq.q_upscale
union all select format('%s was archived as unreadable', message) from pgmq.a_generate
union all select format('%s was archived as unreadable', message) from pgmq.a_upscale
"""


class Job(msgspec.Struct, frozen=True):
    """A job's history, and its folded view; None if it cannot be folded."""

    job_id: UUID
    events: Sequence[DecodedEvent]
    view: JobView | None

    @property
    def status(self) -> str | None:
        """The job's status according to its history."""
        return None if self.view is None else self.view.status

    @property
    def created(self) -> JobCreated:
        """The first event."""
        [created] = self.bodies(JobCreated)
        return created

    def bodies(self, kind: type[B]) -> list[B]:
        """The events of a kind."""
        return [decoded.body for decoded in self.events if isinstance(decoded.body, kind)]


class FinalState(msgspec.Struct, frozen=True):
    """The final state of a service.

    acknowledged: the jobs that clients were answered for; keys: how many Idempotency-Keys they sent. events: by
    partition. jobs: those that can be read; quarantined: the others' views; poisoned: those that must be among these.
    rows: the read model's, and how many steps and artifacts it has in all. commands: what the queues hold.
    objects: of the bucket, by key, size and hash.
    """

    acknowledged: Collection[UUID]
    keys: int
    log_id: UUID
    events: Mapping[int, Sequence[RecordedEvent]]
    jobs: Mapping[UUID, Job]
    rows: Mapping[UUID, JobView]
    row_counts: tuple[int, int]
    commands: Sequence[str]
    objects: Mapping[str, tuple[int, str]]
    poisoned: Collection[UUID] = ()
    quarantined: Mapping[UUID, JobView | None] = {}

    @property
    def succeeded(self) -> list[Job]:
        """The jobs that succeeded."""
        return [job for job in self.jobs.values() if job.status == "succeeded"]

    def count(self, kind: type[DomainEvent]) -> int:
        """How many events of a kind the jobs have."""
        return sum(len(job.bodies(kind)) for job in self.jobs.values())


class Findings(msgspec.Struct, frozen=True):
    """The result of the checks.

    failed: jobs that ended so, though honestly. most_attempts: of one step. wrong: what each check says.
    """

    jobs: int
    failed: int
    attempts: int
    most_attempts: int
    retries: int
    events: int
    wrong: dict[str, list[str]]

    @property
    def good(self) -> bool:
        """Whether there are no failures."""
        return not any(self.wrong.values())


async def check_final_state(
    url: str, s3: S3Config, acknowledged: Collection[UUID], keys: int, poisoned: Collection[UUID] = ()
) -> Findings:
    """Check the final state of a service. url: of the database's owner. poisoned: jobs that must be quarantined."""
    found = await gather(url, s3, acknowledged, keys, poisoned)
    wrong = {name: check(found) for name, check in CHECKS.items()}
    return Findings(
        jobs=len(found.jobs),
        failed=sum(job.status == "failed" for job in found.jobs.values()),
        attempts=found.count(StepStart),
        most_attempts=max((one.attempt for job in found.jobs.values() for one in job.bodies(StepStart)), default=0),
        retries=found.count(StepRetry),
        events=sum(map(len, found.events.values())),
        wrong=wrong,
    )


async def gather(
    url: str, s3: S3Config, acknowledged: Collection[UUID], keys: int, poisoned: Collection[UUID]
) -> FinalState:
    """Read the final state."""
    database = Database(url, time_limited=False)
    try:
        log_id = (await database.read("select log_id from eventstore.log"))[0]["log_id"]
        events = recorded_events(await database.read(_EVENTS))
        rows = [rows_to_view(msgspec.json.decode(row["rows"], type=JobRows)) for row in await database.read(_ROWS)]
        sizes = (await database.read(_SIZES))[0]
        commands = [row["found"] for row in await database.read(_COMMANDS)]
    finally:
        await database.close()
    partitions: dict[int, list[RecordedEvent]] = {}
    histories: dict[UUID, list[RecordedEvent]] = {}
    for event in events:
        partitions.setdefault(event.partition, []).append(event)
        if event.category == "job":
            histories.setdefault(event.stream_id, []).append(event)
    aside = {job: fold_history(history) for job, history in histories.items() if is_quarantined(history)}
    decoded = {job: list(map(codec.decode_event, history)) for job, history in histories.items() if job not in aside}
    found = {job: Job(job, known, folded(known)) for job, known in decoded.items()}
    return FinalState(
        acknowledged=acknowledged,
        keys=keys,
        log_id=log_id,
        events=partitions,
        jobs=found,
        rows={row.job_id: row for row in rows},
        row_counts=(sizes["steps"], sizes["artifacts"]),
        commands=commands,
        objects=await _objects(s3, {one.s3_key for job in found.values() for one in job.bodies(ArtifactWritten)}),
        poisoned=poisoned,
        quarantined={job: None if view is None else in_order(view) for job, view in aside.items()},
    )


async def _objects(s3: S3Config, recorded: Collection[str]) -> dict[str, tuple[int, str]]:
    """All objects of the bucket, read completely, and objects with a recorded key that are not listed.

    After SIGKILLs, SeaweedFS was seen to serve an object that it did not list.
    """
    store = ObjectStore(s3)

    async def described(key: str) -> tuple[str, tuple[int, str]] | None:
        try:
            body = await store.get(key)
        except ObjectMissing:
            return None
        return key, (len(body), hashlib.sha256(body).hexdigest())

    try:
        keys = {*await store.list_keys(""), *recorded}
        return dict(one for one in await asyncio.gather(*map(described, keys)) if one is not None)
    finally:
        await store.close()


def folded(decoded: Sequence[DecodedEvent]) -> JobView | None:
    """The folded view, with its artifacts in the order of the rows."""
    try:
        seen = fold_events(decoded)
    except MissingPrecedingEvent:
        return None
    return None if seen is None else in_order(seen)


def in_order(seen: JobView) -> JobView:
    """The view, with its artifacts by step and item."""
    ordinals = {step.step_id: n for n, step in enumerate(seen.steps)}
    ordered = sorted(seen.artifacts, key=lambda one: (ordinals[one.step_id], one.item_index))
    return msgspec.structs.replace(seen, artifacts=tuple(ordered))


def promises(found: FinalState) -> list[str]:
    """Every acknowledged job exists, and there is one job per idempotency key."""
    keyed = sum(job.created.idempotency is not None for job in found.jobs.values())
    there = found.jobs.keys() | found.quarantined.keys()
    wrong = [f"job {job} was acknowledged, and is lost" for job in found.acknowledged if job not in there]
    return wrong if keyed == found.keys else [*wrong, f"{found.keys} keys were sent, {keyed} jobs bear one"]


def ends(found: FinalState) -> list[str]:
    """Every job has ended."""
    return [f"job {job.job_id} is {job.status}" for job in found.jobs.values() if job.status not in TERMINAL]


def finishes(found: FinalState) -> list[str]:
    """Each step finished once per retry, and all steps of a succeeded job have succeeded."""
    wrong = []
    for job in found.jobs.values():
        drive = 0
        seen: Counter[tuple[UUID, int]] = Counter()
        for decoded in job.events:
            drive += isinstance(decoded.body, RetryRequested)
            if isinstance(decoded.body, StepFinish):
                seen[decoded.body.step_id, drive] += 1
        wrong += [f"job {job.job_id}: step {step[0]} ended {n} times in one drive" for step, n in seen.items() if n > 1]
    for job in found.succeeded:
        done = {one.step_id for one in job.bodies(StepFinish) if one.status == "succeeded"}
        wrong += [
            f"job {job.job_id}: step {one.step_id} did not end" for one in job.created.steps if one.step_id not in done
        ]
    return wrong


def artifacts(found: FinalState) -> list[str]:
    """No item was written twice, and all items of a succeeded job were written."""
    wrong = []
    for job in found.jobs.values():
        written = Counter((one.step, one.item_index) for one in job.bodies(ArtifactWritten))
        wrong += [f"job {job.job_id}: item {item} was written {n} times" for item, n in written.items() if n > 1]
        if job.status == "succeeded":
            planned = product([step.name for step in job.created.steps], range(job.created.generate.count))
            wrong += [f"job {job.job_id}: item {item} was not written" for item in planned if item not in written]
    return wrong


def objects(found: FinalState) -> list[str]:
    """Each artifact has its recorded object; succeeded steps have left no others."""
    written = [one for job in found.jobs.values() for one in job.bodies(ArtifactWritten)]
    named = Counter(one.s3_key for one in written)
    succeeded = {str(job.job_id) for job in found.succeeded}
    return [
        *(f"{key} is the object of {n} artifacts" for key, n in named.items() if n > 1),
        *(
            f"{one.s3_key} was recorded as {(one.bytes, one.sha256)}, and is {found.objects.get(one.s3_key)}"
            for one in written
            if found.objects.get(one.s3_key) != (one.bytes, one.sha256)
        ),
        *(f"{key} is no artifact's" for key in found.objects if key not in named and succeeded & set(key.split("/"))),
    ]


def orphans(found: FinalState) -> list[str]:
    """No command is left."""
    return list(found.commands)


def quarantines(found: FinalState) -> list[str]:
    """Exactly the poisoned jobs are quarantined and failed."""
    return [
        *(f"job {job} is set aside, and was sound" for job in found.quarantined if job not in found.poisoned),
        *(f"job {job} was poisoned, and is not set aside" for job in found.poisoned if job not in found.quarantined),
        *(
            f"job {job} is set aside, and not failed"
            for job, seen in found.quarantined.items()
            if seen is None or (seen.status, seen.error_code) != ("failed", "internal")
        ),
    ]


def chains(found: FinalState) -> list[str]:
    """All hashes and chains verify, from the genesis on."""
    return [
        f"partition {partition} breaks at position {position}"
        for partition, events in found.events.items()
        for position in broken(found.log_id, list(events))
    ]


def gaps(found: FinalState) -> list[str]:
    """Positions and versions have no gaps, and recording times within a partition do not decrease."""
    wrong = []
    for partition, events in found.events.items():
        if [event.position for event in events] != list(range(1, len(events) + 1)):
            wrong.append(f"the positions of partition {partition} have a gap")
        if any(later.recorded_at < earlier.recorded_at for earlier, later in pairwise(events)):
            wrong.append(f"the clock of partition {partition} ran backwards")
    wrong += [
        f"the versions of job {job.job_id} have a gap"
        for job in found.jobs.values()
        if [decoded.version for decoded in job.events] != list(range(1, len(job.events) + 1))
    ]
    return wrong


def read_models(found: FinalState) -> list[str]:
    """The rows equal a fold of the whole log."""
    folded = {job.job_id: job.view for job in found.jobs.values() if job.view is not None}
    folded |= {job: seen for job, seen in found.quarantined.items() if seen is not None}
    expected = (sum(len(one.steps) for one in folded.values()), sum(len(one.artifacts) for one in folded.values()))
    return [
        *(
            f"job {job}: the rows say {found.rows.get(job)}, the log {folded.get(job)}"
            for job in folded.keys() | found.rows.keys()
            if found.rows.get(job) != folded.get(job)
        ),
        *(
            f"there are {there} rows of {kind}, the log says {due}"
            for kind, there, due in zip(("steps", "artifacts"), found.row_counts, expected, strict=True)
            if there != due
        ),
    ]


CHECKS: Mapping[str, Callable[[FinalState], list[str]]] = {
    "acknowledged": promises,
    "terminal": ends,
    "finish": finishes,
    "artifact": artifacts,
    "object": objects,
    "orphan": orphans,
    "quarantine": quarantines,
    "chain": chains,
    "gapless": gaps,
    "read model": read_models,
}
