"""The read model is built anew beside the one that serves, and takes its place."""

import asyncio
import random
from uuid import UUID

import pytest

from eventstore.log import Batch
from eventstore.subscription import Subscription
from orchestrator import codec
from orchestrator.events import JobErased, JobFinish
from projections import job_view
from projections.job_view import JobView
from projections.projector import LIVE_SCHEMA, SHADOW_SCHEMA, Projector, ReadModelSchema
from projections.queries import JobQueries
from projections.rebuild import MAX_SWAP_LAG_S, Rebuild, RebuildFailed
from projections.subscription_status import read_subscription_statuses
from projections.verifier import Disagreement, ReadModelVerifier
from tests import histories
from tests.kit import History, Store, connect, eventually, some_append

INDEXES = "select indexname, replace(indexdef, '{0}.', '') from pg_indexes where schemaname = '{0}' order by 1"


async def append(store: Store, count: int, seed: int = 1) -> list[History]:
    """Append random histories."""
    rng = random.Random(seed)
    drawn = [histories.history(rng) for _ in range(count)]
    await store.log.commit(Batch(appends=[histories.append(one) for one in drawn]))
    return drawn


async def project(store: Store, generation: ReadModelSchema = LIVE_SCHEMA) -> None:
    """Let the projector read all there is."""
    subscription = Subscription(store.log, store.notifier, Projector(store.database, generation), codec.is_known)
    while await subscription.poll_once():
        pass


async def build(store: Store) -> Rebuild:
    """A rebuild up to where it would follow the log."""
    rebuild = Rebuild(store.database)
    await rebuild.begin()
    await rebuild.fill_chunks()
    assert [name async for name in rebuild.build_missing_indexes()]
    return rebuild


async def everything(store: Store) -> list[Disagreement]:
    """What a check of all jobs against the log finds."""
    verifier = ReadModelVerifier(store.database)
    found = [one async for page in verifier.job_id_pages() for one in await verifier.check_jobs(page)]
    return found + await verifier.find_orphans()


async def spoil(store: Store) -> None:
    """Make the rows say something that never was."""
    await store.database.execute_once("update readmodel.jobs set status = 'failed', error_code = 'oom'")


async def test_a_rebuild_mends_what_was_spoilt(store: Store) -> None:
    """Given rows that lie, when the read model is rebuilt, then every row says what the log says."""
    await append(store, 40)
    await project(store)
    await spoil(store)
    assert await everything(store)
    rebuild = await build(store)
    assert await rebuild.follow_and_swap() <= 1.0
    assert await everything(store) == []
    state = await rebuild.state()
    assert (state.generation, state.before, state.rebuild) == (2, True, None)


async def test_rows_are_those_that_the_projector_writes(store: Store) -> None:
    """Given what was projected event by event, when it is rebuilt, then every value of every row is the same."""
    await append(store, 40)
    await project(store)
    await (await build(store)).follow_and_swap()
    connection = await connect(store.database.url)
    for table in ("jobs", "steps", "artifacts"):
        before, after = [
            await connection.fetch(f"select to_jsonb(t)::text as row from {schema}.{table} t order by 1")
            for schema in ("readmodel_before", "readmodel")
        ]
        assert len(before) > 0
        assert before == after
    await connection.close()


async def test_the_new_one_is_indexed_like_the_one_before(store: Store) -> None:
    """Given a rebuilt read model, then it has the same indexes under the same names, and a second rebuild does too."""
    connection = await connect(store.database.url)
    given = await connection.fetch(INDEXES.format("readmodel"))
    for _ in range(2):
        await (await build(store)).follow_and_swap()
        assert await connection.fetch(INDEXES.format("readmodel")) == given
    await connection.close()


async def test_what_comes_meanwhile_is_there_at_the_swap(store: Store) -> None:
    """Given events that come while it fills, indexes and follows, then none is missing when it takes over."""
    first = await append(store, 20)
    await project(store)
    rebuild = Rebuild(store.database)
    await rebuild.begin()
    await append(store, 20, seed=2)
    await rebuild.fill_chunks()
    known = len(first[0].events)
    first[0].started("generate", attempt=9)
    await store.log.commit(Batch(appends=[histories.append(first[0], known=known)]))
    assert [name async for name in rebuild.build_missing_indexes()]
    await append(store, 20, seed=3)
    await rebuild.follow_and_swap()
    assert await everything(store) == []
    assert len(await store.database.read("select from readmodel.jobs")) == 60


async def test_a_swap_waits_for_the_new_one_to_catch_up(store: Store) -> None:
    """Given a shadow that has not read the newest events, then it does not take over, however often it is asked."""
    await append(store, 5)
    await build(store)
    await store.database.execute_once("select projector.follow()")
    await append(store, 5, seed=2)
    for _ in range(3):
        assert (await store.database.execute_once("select projector.swap(0, false) as lag"))[0]["lag"] is None
    await project(store, SHADOW_SCHEMA)
    assert (await store.database.execute_once("select projector.swap(1, false) as lag"))[0]["lag"] is not None


async def test_a_swap_waits_for_who_reads(store: Store) -> None:
    """Given a transaction that has read one table of the read model, then no other takes its place meanwhile."""
    await append(store, 5)
    await build(store)
    await store.database.execute_once("select projector.follow()")
    await project(store, SHADOW_SCHEMA)
    reader = await connect(store.database.url)
    async with reader.transaction():
        await reader.fetch("select * from readmodel.jobs")
        assert (await store.database.execute_once("select projector.swap(60, false) as lag"))[0]["lag"] is None
        await reader.fetch("select * from readmodel.steps")
    assert (await store.database.execute_once("select projector.swap(60, false) as lag"))[0]["lag"] is not None
    await reader.close()


async def test_the_projector_goes_on_where_the_new_one_stands(store: Store) -> None:
    """Given a projector that runs through a swap, then it writes what comes after into the new tables."""
    await append(store, 10)
    projector = Subscription(store.log, store.notifier, Projector(store.database), codec.is_known)
    while await projector.poll_once():
        pass
    await (await build(store)).follow_and_swap()
    await append(store, 10, seed=2)
    await projector.poll_once()
    await project(store)
    assert await everything(store) == []
    assert {one.projection: one.lag for one in await read_subscription_statuses(store.database)} == {LIVE_SCHEMA: 0}


async def test_reads_see_every_event_all_the_while(store: Store) -> None:
    """Given a rebuild at any stage, then a job is read as its whole history tells it."""
    [drawn] = await append(store, 1)
    queries = JobQueries(store.database)
    wanted = job_view.fold_events(drawn.events)
    assert wanted is not None

    async def seen() -> JobView:
        found = await queries.job_view("default", drawn.job_id, artifacts=True)
        assert found is not None
        return found

    async def expect() -> None:
        assert (await seen()).version == wanted.version
        assert (await seen()).status == wanted.status

    rebuild = Rebuild(store.database)
    await expect()
    await rebuild.begin()
    await expect()
    await rebuild.fill_chunks()
    await expect()
    assert [name async for name in rebuild.build_missing_indexes()]
    await rebuild.follow_and_swap()
    await expect()


async def test_any_number_fill_at_once(store: Store) -> None:
    """Given chunks of one job each and a worker that died in one, then the others fill what it left, nothing twice."""
    await append(store, 12)
    await store.database.execute_once("select projector.begin_rebuild($1, 1, false)", job_view.VIEWS_VERSION)
    dead = await connect(store.database.url)
    transaction = dead.transaction()
    await transaction.start()
    taken = await dead.fetchval("select chunk from projector.take_chunk($1)", job_view.VIEWS_VERSION)
    rebuild = Rebuild(store.database)
    others = [asyncio.create_task(rebuild.fill_chunks()) for _ in range(2)]

    async def all_but_one() -> bool:
        under_way = (await rebuild.state()).rebuild
        return under_way is not None and under_way.filled == under_way.chunks - 1

    await eventually(all_but_one)
    assert [name async for name in rebuild.build_missing_indexes()] == []
    assert not any(other.done() for other in others)
    dead.terminate()
    await asyncio.gather(*others)
    state = await rebuild.state()
    assert state.rebuild is not None
    assert state.rebuild.filled == state.rebuild.chunks >= taken
    assert state.rebuild.events == state.rebuild.of_events
    assert [name async for name in rebuild.build_missing_indexes()]
    await rebuild.follow_and_swap()
    assert await everything(store) == []


async def test_a_second_beginning_goes_on_with_the_first(store: Store) -> None:
    """Given a rebuild that was left half done, when one is begun, then what was filled stays filled."""
    await append(store, 3)
    rebuild = Rebuild(store.database)
    await rebuild.begin()
    await rebuild.fill_chunks()
    before = await rebuild.state()
    await rebuild.begin()
    assert await rebuild.state() == before


async def test_what_is_not_filled_does_not_take_over(store: Store) -> None:
    """Given a rebuild that was only begun, then it neither follows nor takes the read model's place."""
    await append(store, 3)
    rebuild = Rebuild(store.database)
    await rebuild.begin()
    await store.database.execute_once("select projector.follow()")
    assert (await store.database.execute_once("select projector.swap(60, false) as lag"))[0]["lag"] is None
    state = await rebuild.state()
    assert state.rebuild is not None
    assert state.rebuild.phase == "filling"


async def test_an_aborted_rebuild_leaves_nothing(store: Store) -> None:
    """Given a rebuild that follows the log, when it is aborted, then the read model serves on, and nothing is left."""
    await append(store, 3)
    await project(store)
    rebuild = await build(store)
    await store.database.execute_once("select projector.follow()")
    assert await rebuild.abort()
    assert not await rebuild.abort()
    state = await rebuild.state()
    assert (state.generation, state.before, state.rebuild) == (1, False, None)
    assert {one.projection for one in await read_subscription_statuses(store.database)} == {LIVE_SCHEMA}
    assert await everything(store) == []
    with pytest.raises(RebuildFailed, match="aborted"):
        await rebuild.follow_and_swap()


async def test_the_one_before_comes_back(store: Store) -> None:
    """Given a rebuilt read model, when it is rolled back, then the one before serves, with all that came since."""
    await append(store, 10)
    await project(store)
    rebuild = await build(store)
    await rebuild.follow_and_swap()
    await append(store, 10, seed=2)
    await project(store)
    await spoil(store)
    await rebuild.begin_rollback()
    await rebuild.follow_and_swap()
    assert (await rebuild.state()).generation == 1
    assert await everything(store) == []


async def test_an_aborted_rollback_can_be_begun_again(store: Store) -> None:
    """Given a rollback that was aborted, then the build before is retired again, and comes back by another."""
    await append(store, 3)
    await project(store)
    rebuild = await build(store)
    await rebuild.follow_and_swap()
    await rebuild.begin_rollback()
    assert await rebuild.abort()
    state = await rebuild.state()
    assert (state.generation, state.before) == (2, True)
    await rebuild.begin_rollback()
    await rebuild.follow_and_swap()
    assert (await rebuild.state()).generation == 1


async def test_there_is_not_always_one_before(store: Store) -> None:
    """Given a read model that was never rebuilt, then there is nothing to roll back to; nor during a rebuild."""
    rebuild = Rebuild(store.database)
    with pytest.raises(RebuildFailed, match="none has been rebuilt"):
        await rebuild.begin_rollback()
    await rebuild.begin()
    with pytest.raises(RebuildFailed, match="under way"):
        await rebuild.begin_rollback()


async def test_views_of_a_later_version_are_built_aside(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a release with other views, then the old rows are kept until its own are built, and those by it alone."""
    await append(store, 5)
    await project(store)
    old = Subscription(store.log, store.notifier, Projector(store.database), codec.is_known)
    await old.poll_once()
    monkeypatch.setattr(job_view, "VIEWS_VERSION", 2)
    await append(store, 5, seed=2)
    await project(store)
    assert len(await store.database.read("select from readmodel.jobs")) == 10
    rebuild = await build(store)
    await rebuild.follow_and_swap()
    assert (await rebuild.state()).views_version == 2

    monkeypatch.setattr(job_view, "VIEWS_VERSION", 1)
    await append(store, 5, seed=3)
    await project(store)
    assert len(await store.database.read("select from readmodel.jobs")) == 10
    monkeypatch.setattr(job_view, "VIEWS_VERSION", 2)
    with pytest.raises(RebuildFailed, match=r"of version 1, .* run the release that built it"):
        await rebuild.begin_rollback()


async def test_a_rebuild_for_other_views_is_given_up(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a rebuild that an earlier release left behind, when a later one begins, then it begins anew."""
    await append(store, 3)
    rebuild = Rebuild(store.database)
    await rebuild.begin()
    await rebuild.fill_chunks()
    monkeypatch.setattr(job_view, "VIEWS_VERSION", 2)
    await rebuild.begin()
    monkeypatch.setattr(job_view, "VIEWS_VERSION", 1)
    await rebuild.fill_chunks()  # who began with the other has no part in this one
    state = await rebuild.state()
    assert state.rebuild is not None
    assert (state.rebuild.views_version, state.rebuild.filled) == (2, 0)


async def test_a_paused_projection_handles_nothing(store: Store) -> None:
    """Given a pause, then nothing is written and reads stay fresh; when it is resumed, all is made up for."""
    await append(store, 3)
    await project(store)
    rebuild = Rebuild(store.database)
    assert await rebuild.set_paused(LIVE_SCHEMA, paused=True)
    [drawn] = await append(store, 1, seed=2)
    await project(store)
    assert len(await store.database.read("select from readmodel.jobs")) == 3
    assert await JobQueries(store.database).job_view("default", drawn.job_id) is not None
    assert await rebuild.set_paused(LIVE_SCHEMA, paused=False)
    await project(store)
    assert len(await store.database.read("select from readmodel.jobs")) == 4
    assert not await rebuild.set_paused("nothing", paused=True)


async def test_a_history_that_cannot_be_folded_is_named(store: Store) -> None:
    """Given a job whose history lacks its beginning, then the rebuild says which, and nothing takes over."""
    broken = some_append()
    await store.log.commit(Batch(appends=[broken]))
    rebuild = Rebuild(store.database)
    await rebuild.begin()
    with pytest.raises(RebuildFailed, match=f"{broken.stream} can't be folded"):
        await rebuild.fill_chunks()
    assert (await rebuild.state()).generation == 1


async def test_who_follows_a_rebuild_that_another_ends_is_told(store: Store) -> None:
    """Given two that follow one shadow, when one swaps it in, then the other ends; when it is aborted, it says so."""
    await append(store, 3)
    rebuild = await build(store)
    lags = await asyncio.gather(rebuild.follow_and_swap(), rebuild.follow_and_swap())
    assert all(lag <= 1.0 for lag in lags)
    assert {one.projection for one in await read_subscription_statuses(store.database)} == {LIVE_SCHEMA}

    rebuild = await build(store)
    await store.database.execute_once("select projector.follow()")
    assert await rebuild.set_paused(SHADOW_SCHEMA, paused=True)
    await append(store, 3, seed=2)
    await asyncio.sleep(MAX_SWAP_LAG_S)
    follower = asyncio.create_task(rebuild.follow_and_swap())
    await asyncio.sleep(0.5)
    assert await rebuild.abort()
    with pytest.raises(RebuildFailed, match="aborted"):
        await follower
    assert {one.projection for one in await read_subscription_statuses(store.database)} == {LIVE_SCHEMA}


async def test_a_projector_that_was_ahead_of_the_new_one_goes_back_to_it(store: Store) -> None:
    """Given a swap to one that lags a little, when nothing more comes, then the projector takes it on all the same."""
    await append(store, 5)
    await build(store)
    await store.database.execute_once("select projector.follow()")
    await append(store, 5, seed=2)
    live = Subscription(store.log, store.notifier, Projector(store.database), codec.is_known)
    while await live.poll_once():
        pass
    assert (await store.database.execute_once("select projector.swap(60, true) as lag"))[0]["lag"] is None
    assert (await store.database.execute_once("select projector.swap(60, false) as lag"))[0]["lag"] is not None
    assert len(await store.database.read("select from readmodel.jobs")) == 5

    async def caught_up() -> bool:
        await live.poll_once()
        return len(await store.database.read("select from readmodel.jobs")) == 10

    await eventually(caught_up)
    assert await everything(store) == []


async def test_what_was_folded_on_the_old_rows_is_not_written_over_the_new(store: Store) -> None:
    """Given a batch that was loaded before a swap, both at the same place, then it is read and folded anew."""
    [drawn] = await append(store, 1)
    await project(store)
    await spoil(store)
    rebuild = await build(store)
    await store.database.execute_once("select projector.follow()")
    await project(store, SHADOW_SCHEMA)
    known = len(drawn.events)
    drawn.started("generate", attempt=9)
    await store.log.commit(Batch(appends=[histories.append(drawn, known=known)]))
    projector = Projector(store.database)
    load = projector._load_views

    async def load_then_swap(job_ids: list[UUID]) -> tuple[UUID | None, dict[UUID, JobView]]:
        found = await load(job_ids)
        if (await rebuild.state()).generation == 1:
            assert (await store.database.execute_once("select projector.swap(60, true) as lag"))[0]["lag"] is not None
        return found

    projector._load_views = load_then_swap  # type: ignore[method-assign]
    live = Subscription(store.log, store.notifier, projector, codec.is_known)

    async def agrees() -> bool:
        await live.poll_once()
        return await everything(store) == [] and all(
            one.lag == 0 for one in await read_subscription_statuses(store.database)
        )

    await eventually(agrees)
    assert (await rebuild.state()).generation == 2


async def test_rolling_forward_again_keeps_the_newer_one(store: Store) -> None:
    """Given a rollback, when going forward again is aborted, then the newer one is still there to go to."""
    await append(store, 3)
    await project(store)
    rebuild = await build(store)
    await rebuild.follow_and_swap()
    for _ in range(2):
        await rebuild.begin_rollback()
        await rebuild.follow_and_swap()
    assert (await rebuild.state()).generation == 2
    await rebuild.begin_rollback()
    await rebuild.follow_and_swap()
    await rebuild.begin_rollback()
    assert await rebuild.abort()
    assert (await rebuild.state()).before
    await rebuild.begin_rollback()
    await rebuild.follow_and_swap()
    assert (await rebuild.state()).generation == 2


async def test_a_rollback_that_was_killed_goes_on_and_is_no_rebuild(store: Store) -> None:
    """Given a rollback that was begun, then another goes on with it; a rebuild begins anew, on no old rows."""
    await append(store, 3)
    await project(store)
    await spoil(store)
    rebuild = await build(store)
    await rebuild.follow_and_swap()
    await rebuild.begin_rollback()
    await rebuild.begin_rollback()
    again = await build(store)
    await again.follow_and_swap()
    assert (await again.state()).generation == 3
    assert await everything(store) == []


async def test_what_serves_is_not_built_twice_by_starting_projectors(store: Store) -> None:
    """Given a read model of this release's views, or of later ones, then a start builds none, and drops none."""
    rebuild = Rebuild(store.database)
    with pytest.raises(RebuildFailed, match="of this release's views"):
        await rebuild.run()
    await store.database.execute_once("update readmodel.generation set version = 9")
    with pytest.raises(RebuildFailed, match="later release"):
        await rebuild.begin()


async def test_text_erased_on_the_way_is_in_no_generation_put_aside(store: Store) -> None:
    """Given an erasure that the read model has not heard of when another takes its place, then it keeps no text."""
    drawn = History(scale=None).add(JobFinish(status="failed"))
    await store.log.commit(Batch(appends=[histories.append(drawn)]))
    await project(store)
    rebuild = await build(store)
    drawn.add(JobErased(erased=["prompt"]))
    await store.log.commit(Batch(appends=[histories.append(drawn, known=2)]))
    await rebuild.follow_and_swap()
    [row] = await store.database.read("select params ->> 'prompt' as prompt from readmodel_before.jobs")
    assert row["prompt"] is None
