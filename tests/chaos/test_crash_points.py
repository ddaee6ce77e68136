"""A process dies at every boundary of its effects, just before a statement is sent or just after it was committed.

Every effect of a process goes through `Database.execute_once` or the object store, so a substituted subclass of each is
all that it takes; the service itself knows nothing of it. After its death nothing of the process has an effect, nor
sees an answer, as after a SIGKILL; then a second process must bring the job to its end, as if nothing had been.
"""

import asyncio
import hashlib
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from contextvars import ContextVar
from functools import partial
from typing import Any, Literal, NamedTuple, TypeVar
from uuid import UUID

import msgspec
import pytest

from artifacts.object_store import ObjectStore, S3Config, StoredObject
from dreamforge import process, roles
from dreamforge.settings import Settings, load_settings
from eventstore.committer import Committer, Transition
from eventstore.database import Database
from eventstore.events import RecordedEvent
from eventstore.ids import new_id
from eventstore.log import DEFAULT_TENANT, Append, Log
from eventstore.notifier import LOG_CHANNEL, queue_channel
from orchestrator import codec
from orchestrator.events import ArtifactWritten, JobFinish, PersonalText, StepFinish
from orchestrator.step_kinds import STEP_KINDS
from projections.job_view import JobView, fold_events
from projections.queries import JobQueries
from tests.conftest import Backends, fresh_database
from tests.kit import event, eventually, job_created, roles_environ
from tests.store.test_hash_chain import broken

T = TypeVar("T")
Side = Literal["before", "after"]
Part = Literal["append", "reaction", "projection", "runner"]

ITEMS = 2
AT_ONCE = 8
READS = {"log", "checkpoints", "partitions' events", "streams' events", "rows", "floors", "s3 get"}
PARTS: tuple[Part, ...] = ("append", "reaction", "projection", "runner")
part_of_task: ContextVar[Part] = ContextVar("part_of_task", default="append")
"""Which part of the process a task belongs to; tasks inherit it from who starts them."""

_SETTLED = """
select exists (select from eventstore.events where stream_id = $1 and code = 'job.finish')
    and not exists (select from pgmq.q_generate) and not exists (select from pgmq.q_upscale)
    and (select version from readmodel.jobs where job_id = $1)
        = (select max(version) from eventstore.events where stream_id = $1) as settled
"""


class CrashPoint(NamedTuple):
    """The n-th effect of a part, from 1, and on which side of it the process dies."""

    part: Part
    n: int
    side: Side


class Fuse:
    """Every effect of a process passes through it; at the crash point it blows, and lets nothing through any more."""

    def __init__(self, point: CrashPoint | None = None) -> None:
        self._point = point
        self.effects: dict[Part, list[str]] = {part: [] for part in PARTS}
        self.blown = asyncio.Event()

    async def through(self, what: str, effect: Callable[[], Awaitable[T]]) -> T:
        """Have an effect, and see its answer, while the process lives; a dead one waits for ever."""
        part = part_of_task.get()
        await self._living()
        self.effects[part].append(what)
        side = self._side(part)
        if side == "before":
            self.blown.set()
        await self._living()
        answer = await effect()
        if side == "after":
            self.blown.set()
        await self._living()
        return answer

    def _side(self, part: Part) -> Side | None:
        here = self._point is not None and self._point[:2] == (part, len(self.effects[part]))
        return self._point.side if here and self._point is not None else None

    async def _living(self) -> None:
        if self.blown.is_set():
            await asyncio.Event().wait()


class FusedDatabase(Database):
    """Another's connections behind a fuse."""

    def __init__(self, database: Database, fuse: Fuse) -> None:
        super().__init__(database.url)
        self._database = database
        self._fuse = fuse

    async def execute_once(self, sql: str, *args: object, seconds: float | None = None) -> list[Any]:
        """As the other's."""
        return await self._fuse.through(named(sql), partial(self._database.execute_once, sql, *args, seconds=seconds))


class FusedStore(ObjectStore):
    """Another's objects behind a fuse. A client for each process would take longer to make than the process lives."""

    def __init__(self, config: S3Config, store: ObjectStore, fuse: Fuse) -> None:
        super().__init__(config)
        self._store = store
        self._fuse = fuse

    async def ensure_bucket(self) -> None:
        """As the other's."""
        await self._fuse.through("s3 bucket", self._store.ensure_bucket)

    async def put(self, key: str, body: bytes, content_type: str) -> StoredObject:
        """As the other's."""
        return await self._fuse.through("s3 put", partial(self._store.put, key, body, content_type))

    async def get_verified(self, key: str, written: StoredObject) -> bytes:
        """As the other's."""
        return await self._fuse.through("s3 get", partial(self._store.get_verified, key, written))


class FusedCore(process.ProcessContext):
    """What the roles of a process share, all of it behind a fuse."""

    def __init__(self, settings: Settings, database: Database, case: "Case", fuse: Fuse) -> None:
        super().__init__(settings, FusedDatabase(database, fuse), asyncio.Event())
        self._case = case
        self._fuse = fuse

    def create_store(self) -> ObjectStore:
        """The case's objects, behind the fuse."""
        return FusedStore(self._case.config, self._case.store, self._fuse)


class Case(NamedTuple):
    """One job, and where it lives."""

    url: str
    config: S3Config
    store: ObjectStore
    job_id: UUID


def named(sql: str) -> str:
    """What a statement is for."""
    marks = (
        ("eventstore.commit(", "commit"),
        ("eventstore.claim(", "claim"),
        ("eventstore.extend(", "extend"),
        ("eventstore.floors(", "floors"),
        ("eventstore.subscribe(", "subscribe"),
        ("projector.project(", "project"),
        ("eventstore.standings", "checkpoints"),
        ("of_partition", "partitions' events"),
        ("where stream_id", "streams' events"),
        ("from eventstore.log", "log"),
        ("readmodel.jobs", "rows"),
    )
    return next((kind for mark, kind in marks if mark in sql), "other")


def sides_of(effect: str) -> tuple[Side, ...]:
    """The sides to die on. A read leaves nothing behind: who dies after it might as well have died before."""
    return ("before",) if effect in READS else ("before", "after")


async def live(case: Case, fuse: Fuse) -> None:
    """One process with every role, from its start until it dies, or the job's last trace is settled and checked."""
    settings = msgspec.structs.replace(
        load_settings(roles_environ(case.url, case.config))[0], lease_s=1.5, max_attempts=100, shutdown_grace_s=0
    )
    # What a backend of the server has to learn first takes longer than all that the process asks of it.
    database = Database(settings.db_url or "", max_connections=2)
    core = FusedCore(settings, database, case, fuse)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(database.close)
        end = asyncio.create_task(eventually(partial(settled, database, case.job_id), within=120, what="the job's end"))
        death = asyncio.create_task(fuse.blown.wait())
        async with AsyncExitStack() as process:
            works = [asyncio.create_task(work) for work in (run(core, case, process), notify(core))]
            await asyncio.wait({death, end}, return_when=asyncio.FIRST_COMPLETED)
            fuse.blown.set()
            for work in works:
                await ended(work)
            await quit_writing(core.committer)
        if end.done():
            end.result()
            await check(case, database)
        await ended(end)


async def ended(task: asyncio.Task[Any]) -> None:
    """Cancel a task, and see it end."""
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def quit_writing(committer: Committer) -> None:
    """Stop a committer without the time that it takes for what is pending, which nobody lets through any more."""
    if committer.task._task is not None:
        await ended(committer.task._task)


async def run(core: FusedCore, case: Case, stack: AsyncExitStack) -> None:
    """Start every role, and submit the job as its client does: again under the same id, if it got no answer."""
    starts: tuple[tuple[Part, process.Role], ...] = (
        ("reaction", roles._orchestrator),
        ("projection", roles._projector),
        ("runner", roles._runner),
    )
    await submit(core.committer, case.job_id)
    for part, role in starts:
        part_of_task.set(part)
        await role(core, stack)
    await asyncio.Event().wait()


async def submit(committer: Committer, job_id: UUID) -> None:
    """Append the first event; a conflict says that an earlier try did."""
    created = event(job_created(count=ITEMS, width=16, height=16), private=PersonalText(prompt="a castle"))
    await committer.commit(Transition(append=Append(stream=job_id, category="job", expected=0, events=(created,))))


async def notify(core: FusedCore) -> None:
    """Notify as other processes do all the time: a lease ends without a notification, and polls are far apart."""
    while True:
        await asyncio.sleep(0.3)
        core.notifier.notify([LOG_CHANNEL, *map(queue_channel, STEP_KINDS)])


async def settled(database: Database, job_id: UUID) -> bool:
    """Has the job ended, is the read model level with it, and are the queues empty?"""
    return bool((await database.read(_SETTLED, job_id))[0]["settled"])


async def check(case: Case, database: Database) -> None:
    """Everything happened once, and log, read model and objects agree."""
    log = Log(database)
    history = await log.read_stream(case.job_id)
    check_history(history)
    head = await log.read_head()
    partition = history[0].partition
    assert broken(head.log_id, (await log.read_after({partition: 0}, limit=1000))[partition]) == []
    kept = await JobQueries(database).job_view(DEFAULT_TENANT, case.job_id, artifacts=True)
    assert kept is not None
    assert in_order(kept) == in_order(fold_events(map(codec.decode_event, history)))
    for artifact in kept.artifacts:
        body = await case.store.get(artifact.s3_key)
        assert (len(body), hashlib.sha256(body).hexdigest()) == (artifact.bytes, artifact.sha256)


def check_history(history: list[RecordedEvent]) -> None:
    """The job succeeded; each item has one artifact, each step one end, the job one."""
    bodies = [codec.decode_body(one) for one in history]
    written = Counter((body.step, body.item_index) for body in bodies if isinstance(body, ArtifactWritten))
    assert written == {(step, index): 1 for step in ("generate", "upscale") for index in range(ITEMS)}
    ends = [(body.step, body.status) for body in bodies if isinstance(body, StepFinish)]
    assert ends == [("generate", "succeeded"), ("upscale", "succeeded")]
    assert [body.status for body in bodies if isinstance(body, JobFinish)] == ["succeeded"]
    assert history[-1].code == "job.finish"


def in_order(job: JobView | None) -> JobView:
    """A view with its artifacts in an order that does not depend on who was first."""
    assert job is not None
    artifacts = sorted(job.artifacts, key=lambda one: (one.step_id, one.item_index))
    return msgspec.structs.replace(job, artifacts=tuple(artifacts))


def crash_and_recover(
    backends: Backends, config: S3Config, store: ObjectStore, points: Sequence[CrashPoint]
) -> list[str | None]:
    """For each point, let a process die there and another take over, the next job's after the other's end.

    Answers what each died of, None where the point lay beyond the end.
    """
    died: list[str | None] = []
    with fresh_database(backends) as url:
        for point in points:
            case = Case(url, config, store, new_id())
            fuse = Fuse(point)
            asyncio.run(live(case, fuse))
            effects = fuse.effects[point.part][: point.n]
            died.append(effects[-1] if len(effects) == point.n else None)
            try:
                asyncio.run(live(case, Fuse()))
            except Exception as error:
                raise AssertionError(f"no recovery from a crash at {point}, after {effects[-3:]}") from error
    return died


@pytest.fixture(scope="module")
def objects(s3_config: S3Config) -> Iterator[ObjectStore]:
    """The session's object store, for every process."""
    store = ObjectStore(s3_config)
    yield store
    asyncio.run(store.close())


@pytest.fixture(scope="module")
def boundaries(backends: Backends, s3_config: S3Config, objects: ObjectStore) -> dict[Part, list[str]]:
    """The effects of an undisturbed run, by part."""
    with fresh_database(backends) as url:
        case = Case(url, s3_config, objects, new_id())
        fuse = Fuse()
        asyncio.run(live(case, fuse))
        return fuse.effects


@pytest.mark.parametrize("part", PARTS)
def test_a_crash_at_any_boundary_is_recovered_from(
    backends: Backends,
    s3_config: S3Config,
    objects: ObjectStore,
    boundaries: dict[Part, list[str]],
    part: Part,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Given a crash on each side of each effect of a part, then the job succeeds, and everything happened once."""
    effects = boundaries[part]
    points = [CrashPoint(part, n, side) for n, effect in enumerate(effects, 1) for side in sides_of(effect)]
    # The first points, which lie in the start, come first in a new database.
    shares = [points[start::AT_ONCE] for start in range(min(AT_ONCE, len(points)))]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        died = [
            one for share in pool.map(partial(crash_and_recover, backends, s3_config, objects), shares) for one in share
        ]
    crashes = len(points) - died.count(None)
    with capsys.disabled():
        print(f"\n{part}: {len(effects)} boundaries {dict(Counter(effects))}, {crashes} crashes")  # noqa: T201  # for docs
    # A run that is quicker than the first has fewer effects.
    assert crashes > len(points) / 2
