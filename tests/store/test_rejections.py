"""Jobs that some process can't read: who may report one, and what is done once one is released."""

import asyncio

import pytest

from eventstore import schema
from eventstore.ids import new_id
from eventstore.log import Append, Batch, CheckpointMove
from eventstore.subscription import Subscription
from model_registry.catalogue import ModelCatalogue
from orchestrator import codec
from orchestrator.events import JobCreated, JobQuarantined, JobReleased, KeyCreated, PersonalText, StepStart
from orchestrator.process_manager import Orchestrator
from orchestrator.quarantine_log import Quarantine
from projections.key_queries import ApiKeys
from projections.projector import Projector
from projections.queries import JobQueries
from projections.rebuild import Rebuild
from projections.verifier import ReadModelVerifier
from tests.kit import History, Store, event, eventually, job_created, model_registered, stream_in

REPORTED = "select stream_id from eventstore.rejections"
SET_ASIDE = JobQuarantined(reader="orchestrator", at_version=1, reason="RuntimeError")


def history(created: JobCreated) -> Append:
    """A job that was set aside at once, went on, and runs."""
    started = StepStart(step_id=created.steps[0].step_id, step_name="generate", attempt=1, runner="r")
    bodies = (created, SET_ASIDE, JobReleased(resume=True), started)
    return Append(stream=new_id(), category="job", expected=0, events=tuple(event(body) for body in bodies))


async def rebuilt(store: Store) -> None:
    """Build the read model anew, and let it serve."""
    rebuild = Rebuild(store.database)
    await rebuild.begin()
    await rebuild.fill_chunks()
    assert [name async for name in rebuild.build_missing_indexes()]
    await rebuild.follow_and_swap()


async def test_an_older_process_reports_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a process of an earlier release than the schema's, then what it can't read is no news: a later one may."""
    job = new_id()
    monkeypatch.setattr("eventstore.log.RELEASE", schema.RELEASE - 1)
    await store.log.report_rejection(job, "readmodel", 1, "RuntimeError")
    assert await store.database.read(REPORTED) == []
    monkeypatch.setattr("eventstore.log.RELEASE", schema.RELEASE)
    await store.log.report_rejection(job, "readmodel", 1, "RuntimeError")
    assert [row["stream_id"] for row in await store.database.read(REPORTED)] == [job]


async def test_a_released_job_is_viewed_no_further_than_asked(store: Store) -> None:
    """Given events up to a job's release, and one after it, then the view ends where the events do."""
    append = history(job_created())
    await store.log.commit(Batch(appends=[append]))
    events = await store.log.read_stream(append.stream)
    view = await JobQueries(store.database).fold_events_onto_view(None, events[:3])
    assert view is not None
    assert (view.version, view.status) == (3, "queued")
    view = await JobQueries(store.database).fold_events_onto_view(view, events[3:])
    assert view is not None
    assert (view.version, view.status) == (4, "running")


async def test_what_two_events_ask_for_is_sent_once(store: Store) -> None:
    """Given a job's beginning and its release in one batch of events, then its first step is queued once."""
    created = job_created()
    append = history(created)
    append = Append(stream=append.stream, category="job", expected=0, events=append.events[:3])
    await store.log.commit(Batch(appends=[append]))
    await store.log.subscribe(Orchestrator.name)
    events = await store.log.read_stream(append.stream)
    partition, last = events[0].partition, events[-1].position
    orchestrator = Orchestrator(store.log, store.committer, "test")
    await orchestrator.handle(
        events, [CheckpointMove(subscription=Orchestrator.name, partition=partition, start=0, end=last)]
    )
    rows = await store.database.read("select message->>'step_id' as step_id from pgmq.q_generate")
    assert [row["step_id"] for row in rows] == [str(created.steps[0].step_id)]


async def test_a_job_that_cannot_be_stored_stops_nobody_else(store: Store) -> None:
    """Given a count that no column takes, then that job is reported, and kept once it is set aside; so by a rebuild."""
    bodies = [job_created(scale=None), job_created(scale=None, count=10**12), job_created(scale=None)]
    before, broken, behind = [
        Append(stream=stream_in(1), category="job", expected=0, events=(event(body),)) for body in bodies
    ]
    await store.log.commit(Batch(appends=[before, broken, behind]))
    subscription = Subscription(store.log, store.notifier, Projector(store.database), codec.is_known)

    async def reported() -> bool:
        await subscription.poll_once()
        return await store.database.read(REPORTED) != []

    await eventually(reported)
    assert subscription.cursors[1].failure == (
        f"stream {broken.stream}, version 1 (job.created): NumericValueOutOfRangeError"
    )
    assert subscription.cursors[1].checkpoint == 1
    await Quarantine(store.log, "test").quarantine_job(
        broken.stream, "default", reader="readmodel", at_version=1, reason="range"
    )
    ends = [(before.stream, 1, "queued"), (broken.stream, 2, "failed"), (behind.stream, 1, "queued")]

    async def kept() -> bool:
        await subscription.poll_once()
        rows = await store.database.read("select job_id, version, status from readmodel.jobs order by job_id")
        return [tuple(row) for row in rows] == sorted(ends)

    await eventually(kept)
    await rebuilt(store)
    assert await kept()
    assert await ReadModelVerifier(store.database).check_jobs([job for job, _, _ in ends]) == []


async def test_a_row_that_cannot_be_loaded_is_written_anew(store: Store) -> None:
    """Given a row that is none of ours, then its job is reported, and as good as new once it is set aside."""
    history = History(scale=None)
    await store.log.commit(
        Batch(appends=[Append(stream=history.job_id, category="job", expected=0, events=(event(history.created),))])
    )
    subscription = Subscription(store.log, store.notifier, Projector(store.database), codec.is_known)
    while await subscription.poll_once():
        pass
    await store.database.execute_once("update readmodel.jobs set status = 'lost'")
    [started] = [decoded.body for decoded in history.started("generate").events[1:] if decoded.body is not None]
    await store.log.commit(
        Batch(appends=[Append(stream=history.job_id, category="job", expected=1, events=(event(started),))])
    )

    async def reported() -> bool:
        await subscription.poll_once()
        return await store.database.read(REPORTED) != []

    await eventually(reported)
    [found] = await ReadModelVerifier(store.database).check_jobs([history.job_id])
    assert "the row can't be read: Invalid enum value 'lost'" in found.problem
    await Quarantine(store.log, "test").quarantine_job(history.job_id, "default", reader="x", at_version=2, reason="x")

    async def kept() -> bool:
        await subscription.poll_once()
        return await ReadModelVerifier(store.database).check_jobs([history.job_id]) == []

    await eventually(kept)


async def test_what_no_fold_was_written_for_is_read_all_the_same(store: Store) -> None:
    """Given an image of another job's step, and later a row that is none of ours, then a read gives what there is."""
    history = History().started("generate").wrote("generate", 0)
    bodies = [decoded.body for decoded in history.events if decoded.body is not None]
    events = tuple(event(body) for body in [*bodies, History().item("generate", 0)])
    await store.log.commit(Batch(appends=[Append(stream=history.job_id, category="job", expected=0, events=events)]))
    queries = JobQueries(store.database)

    async def images() -> list[int] | None:
        view = await queries.job_view("default", history.job_id, artifacts=True)
        return None if view is None else [one.item_index for one in view.artifacts]

    assert await images() == [0]
    subscription = Subscription(store.log, store.notifier, Projector(store.database), codec.is_known)
    while await subscription.poll_once():
        pass
    assert [one.job_id for one in await ReadModelVerifier(store.database).check_jobs([history.job_id])] == [
        history.job_id
    ]
    await store.database.execute_once("update readmodel.jobs set status = 'lost'")
    assert await images() == [0]


async def test_a_prompt_that_no_text_column_takes_is_listed(store: Store) -> None:
    """Given U+0000 in a prompt, which a json column takes from a rebuild, then the tenant's list is whole."""
    created = event(job_created(), private=PersonalText(prompt="a\0castle"))
    await store.log.commit(Batch(appends=[Append(stream=new_id(), category="job", expected=0, events=(created,))]))
    await rebuilt(store)
    listed = await JobQueries(store.database).list_jobs("default", status=None, older_than=None, limit=5)
    assert [one.prompt for one in listed] == ["a\0castle"]


async def test_keys_and_models_that_break_the_fold_are_left_out(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a bug in the fold, then there are no such keys and models, and no request breaks."""
    created = KeyCreated(name="x", scopes=["jobs"], digest="0" * 64)
    key = Append(stream=new_id(), category="key", expected=0, events=(event(created),))
    model = Append(stream=new_id(), category="model", expected=0, events=(event(model_registered()),))
    await store.log.commit(Batch(appends=[key, model]))
    keys, models = ApiKeys(store.log), ModelCatalogue(store.log)
    assert (len(await keys.list_keys()), len(await models.all())) == (1, 1)
    monkeypatch.setattr("projections.key_queries.evolve_key", lambda *_: 1 / 0)
    monkeypatch.setattr("model_registry.catalogue.evolve", lambda *_: 1 / 0)
    assert (await keys.list_keys(), await models.all(), await models.model(model.stream)) == ([], [], None)


@pytest.mark.parametrize("released_first", [False, True])
async def test_a_report_of_before_the_release_says_nothing_of_the_job(store: Store, *, released_first: bool) -> None:
    """Given a report and a release of its job, then what was reported later alone sets the job aside again."""
    append = history(job_created())
    before, release = append.events[:2], append.events[2:3]
    await store.log.commit(Batch(appends=[Append(stream=append.stream, category="job", expected=0, events=before)]))
    report = store.log.report_rejection(append.stream, "readmodel", 1, "RuntimeError")
    released = store.log.commit(
        Batch(appends=[Append(stream=append.stream, category="job", expected=2, events=release)])
    )
    for call in (released, report) if released_first else (report, released):
        await call
    watching = asyncio.create_task(Quarantine(store.log, "test").run())

    async def taken() -> bool:
        return await store.database.read(REPORTED) == []

    await eventually(taken)
    watching.cancel()
    assert (await store.codes(append.stream))[3:] == (["job.quarantined"] if released_first else [])
