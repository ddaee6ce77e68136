"""Jobs that some process can't read: who may report one, and what is done once one is released."""

import asyncio

import pytest

from eventstore import schema
from eventstore.events import JobCreated, JobQuarantined, JobReleased, StepStart
from eventstore.ids import new_id
from eventstore.log import Append, Batch, Move
from orchestrator.loop import Orchestrator
from orchestrator.quarantine_log import Quarantine
from projections.queries import Queries
from tests.kit import Store, event, eventually, job_created

REPORTED = "select stream_id from eventstore.rejections"
SET_ASIDE = JobQuarantined(reader="orchestrator", at_version=1, reason="RuntimeError")


def history(created: JobCreated) -> Append:
    """A job that was set aside at once, went on, and runs."""
    started = StepStart(step_id=created.steps[0].step_id, step_name="generate", attempt=1, runner="r")
    bodies = (created, SET_ASIDE, JobReleased(resume=True), started)
    return Append(stream=new_id(), expected=0, events=tuple(event(body) for body in bodies))


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
    events = await store.log.stream(append.stream)
    view = await Queries(store.database).advanced(None, events[:3])
    assert view is not None
    assert (view.version, view.status) == (3, "queued")
    view = await Queries(store.database).advanced(view, events[3:])
    assert view is not None
    assert (view.version, view.status) == (4, "running")


async def test_what_two_events_ask_for_is_sent_once(store: Store) -> None:
    """Given a job's beginning and its release in one batch of events, then its first step is queued once."""
    created = job_created()
    append = history(created)
    append = Append(stream=append.stream, expected=0, events=append.events[:3])
    await store.log.commit(Batch(appends=[append]))
    await store.log.subscribe(Orchestrator.name)
    events = await store.log.stream(append.stream)
    partition, last = events[0].partition, events[-1].position
    orchestrator = Orchestrator(store.log, store.committer, "test")
    await orchestrator.handle(events, [Move(subscription=Orchestrator.name, partition=partition, start=0, end=last)])
    rows = await store.database.read("select message->>'step_id' as step_id from pgmq.q_generate")
    assert [row["step_id"] for row in rows] == [str(created.steps[0].step_id)]


@pytest.mark.parametrize("released_first", [False, True])
async def test_a_report_of_before_the_release_says_nothing_of_the_job(store: Store, *, released_first: bool) -> None:
    """Given a report and a release of its job, then what was reported later alone sets the job aside again."""
    append = history(job_created())
    before, release = append.events[:2], append.events[2:3]
    await store.log.commit(Batch(appends=[Append(stream=append.stream, expected=0, events=before)]))
    report = store.log.report_rejection(append.stream, "readmodel", 1, "RuntimeError")
    released = store.log.commit(Batch(appends=[Append(stream=append.stream, expected=2, events=release)]))
    for call in (released, report) if released_first else (report, released):
        await call
    watching = asyncio.create_task(Quarantine(store.log, "test").run())

    async def taken() -> bool:
        return await store.database.read(REPORTED) == []

    await eventually(taken)
    watching.cancel()
    assert (await store.codes(append.stream))[3:] == (["job.quarantined"] if released_first else [])
