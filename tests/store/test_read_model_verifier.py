"""The read model is held against the log, and every difference is named."""

from uuid import UUID

import pytest

from eventstore.log import Append, Batch
from eventstore.subscription import Subscription
from orchestrator import codec
from orchestrator.events import PersonalText
from projections.projector import Projector
from projections.verifier import Disagreement, ReadModelVerifier
from tests.kit import History, Store, event


async def projected(store: Store, *histories: History) -> None:
    """Append some histories, and let the projector read all there is."""
    for history in histories:
        known = len(await store.log.read_stream(history.job_id))
        bodies = [decoded.body for decoded in history.events[known:] if decoded.body is not None]
        private = PersonalText(prompt="a castle") if known == 0 else None
        events = tuple(event(body, private=private if n == 0 else None) for n, body in enumerate(bodies))
        await store.log.commit(
            Batch(appends=[Append(stream=history.job_id, category="job", expected=known, events=events)])
        )
    subscription = Subscription(store.log, store.notifier, Projector(store.database), codec.is_known)
    while await subscription.poll_once():
        pass


async def everything(store: Store) -> list[Disagreement]:
    """What a check of all jobs finds."""
    verifier = ReadModelVerifier(store.database)
    found = [one async for page in verifier.job_id_pages() for one in await verifier.check_jobs(page)]
    return found + await verifier.find_orphans()


def a_job() -> History:
    """A job of two images, half done."""
    return History(count=2).started("generate").wrote("generate", 1)


async def test_what_the_projector_wrote_agrees(store: Store) -> None:
    """Given jobs in several states, then nothing differs; nor while the projector lags behind the log."""
    done = History().started("generate").wrote("generate", 0).finished("generate")
    half = a_job()
    await projected(store, done, half, History())
    assert await everything(store) == []
    more = half.wrote("generate", 0).events[-1].body
    assert more is not None
    await store.log.commit(
        Batch(appends=[Append(stream=half.job_id, category="job", expected=3, events=(event(more),))])
    )
    assert await everything(store) == []


FORGERIES = {
    "update readmodel.jobs set status = 'failed'": "status",
    "update readmodel.steps set completed = 2 where ordinal = 0": "steps.generate.completed",
    "update readmodel.artifacts set sha256 = 'x'": "artifacts.generate.1.sha256",
    "delete from readmodel.artifacts": "artifacts.generate.1.sha256",
    "update readmodel.jobs set params = '{}'": "params.prompt",
}


@pytest.mark.parametrize("statement", FORGERIES)
async def test_a_row_that_says_otherwise_is_named(store: Store, statement: str) -> None:
    """Given one row changed, then the job and the place are named, with what the log says and what the row says."""
    job = a_job()
    await projected(store, job)
    await store.database.execute_once(statement)
    [found] = await everything(store)
    assert found.job_id == job.job_id
    assert FORGERIES[statement] in {one.path for one in found.differences}
    assert all(one.before != one.after for one in found.differences)


PROBLEMS = {
    "delete from readmodel.jobs": "there is no row",
    "update readmodel.jobs set version = 2": "the row stands at version 2",
    "update readmodel.jobs set version = 9": "the history ends at 3",
}


@pytest.mark.parametrize("statement", PROBLEMS)
async def test_a_row_that_is_missing_or_out_of_step_is_told(store: Store, statement: str) -> None:
    """Given a projector that has passed the event, then a row that has not is told."""
    job = a_job()
    await projected(store, job)
    await store.database.execute_once(statement)
    found = {one.job_id: one.problem for one in await everything(store)}
    assert PROBLEMS[statement] in found[job.job_id] or "belongs to nothing" in found[job.job_id]
    [checked] = await ReadModelVerifier(store.database).check_jobs([job.job_id])
    assert PROBLEMS[statement] in checked.problem


async def test_rows_of_nothing_are_told(store: Store) -> None:
    """Given a job's row without events, and an artifact without a step, then each is told."""
    job = a_job()
    await projected(store, job)
    stranger = UUID(int=5)
    await store.database.execute_once("update readmodel.artifacts set step_id = $1", stranger)
    await store.database.execute_once(
        "insert into readmodel.jobs select $1, tenant, type, status, created_at, updated_at, version, count, params, "
        "metadata, null, null from readmodel.jobs",
        stranger,
    )
    found = [(one.job_id, one.problem) for one in await everything(store)]
    assert (stranger, "the row stands at version 3, and the history ends at 0") in found
    assert any(job_id == job.job_id and "belongs to nothing" in problem for job_id, problem in found)


async def test_every_job_is_looked_at(store: Store) -> None:
    """Given more jobs than a page holds, then each comes once."""
    jobs = [History() for _ in range(450)]
    for n in range(0, len(jobs), 50):
        appends = [
            Append(stream=job.job_id, category="job", expected=0, events=(event(job.created),))
            for job in jobs[n : n + 50]
        ]
        await store.log.commit(Batch(appends=appends))
    found = [job async for page in ReadModelVerifier(store.database).job_id_pages() for job in page]
    assert sorted(found) == sorted(job.job_id for job in jobs)
