"""The committer: many transitions, few commits; none lost and none twice when the database goes away."""

import asyncio

import pytest

from eventstore.committer import Committer, Transition
from eventstore.database import Database
from eventstore.errors import DatabaseUnavailable
from eventstore.log import Batch, BatchOutcome, Log
from tests.kit import Store, connect, eventually, some_append, stream_in


async def test_transitions_that_arrive_together_share_commits(store: Store) -> None:
    """Given 100 transitions at once, then they are written in a few calls."""
    calls = 0
    commit = store.log.commit

    async def counted(batch: Batch) -> BatchOutcome:
        nonlocal calls
        calls += 1
        return await commit(batch)

    store.log.commit = counted  # type: ignore[method-assign]
    answers = await asyncio.gather(*(store.committer.commit(Transition(append=some_append())) for _ in range(100)))
    assert {answer.verdict for answer in answers} == {"accepted"}
    assert calls <= 3


async def test_after_a_call_with_several_transitions_the_next_waits_for_more(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given two transitions in one call, when two more come one after the other, then one call takes both."""
    monkeypatch.setattr("eventstore.committer._BUSY_GATHER_S", 0.5)
    calls: list[int] = []
    commit = store.log.commit

    async def counted(batch: Batch) -> BatchOutcome:
        calls.append(len(batch.appends))
        return await commit(batch)

    store.log.commit = counted  # type: ignore[method-assign]
    transitions = [Transition(append=some_append()) for _ in range(5)]
    await store.committer.commit(transitions[0])
    await asyncio.gather(*map(store.committer.commit, transitions[1:3]))
    first = asyncio.create_task(store.committer.commit(transitions[3]))
    for _ in range(5):
        await asyncio.sleep(0)
    await asyncio.gather(first, store.committer.commit(transitions[4]))
    assert calls == [1, 2, 2]


async def test_transitions_of_one_stream_keep_their_order(store: Store) -> None:
    """Given ten transitions of one stream, each expecting the one before, then all are accepted."""
    first = some_append()
    appends = [first, *(some_append(first.stream, expected=n) for n in range(1, 10))]
    answers = await asyncio.gather(*(store.committer.commit(Transition(append=one)) for one in appends))
    assert [answer.version for answer in answers] == list(range(1, 11))


async def test_a_lost_answer_is_asked_for_again(store: Store) -> None:
    """Given a connection that dies after the write, then the transition is recognised, and written once."""
    commit = store.log.commit
    died = False

    async def dying(batch: Batch) -> BatchOutcome:
        nonlocal died
        answers = await commit(batch)
        if not died:
            died = True
            raise DatabaseUnavailable("the connection died before the answer came")
        return answers

    store.log.commit = dying  # type: ignore[method-assign]
    one = some_append(count=2)
    answer = await store.committer.commit(Transition(append=one))
    assert answer.verdict == "already_committed"
    assert len(await store.log.read_stream(one.stream)) == 2


async def test_killed_backends_cost_nothing(store: Store, db_url: str) -> None:
    """Given backends terminated all the while, then every transition is accepted exactly once."""
    connection = await connect(db_url)
    killing = True

    async def kill() -> None:
        while killing:
            await connection.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity "
                "where datname = current_database() and pid <> pg_backend_pid()"
            )
            await asyncio.sleep(0.2)

    killer = asyncio.create_task(kill())
    appends = [some_append() for _ in range(60)]
    answers = []
    for n in range(0, 60, 2):
        answers += await asyncio.gather(*(store.committer.commit(Transition(append=one)) for one in appends[n : n + 2]))
    killing = False
    await killer
    assert all(answer.committed and answer.version == 1 for answer in answers)
    await connection.close()


async def test_while_a_lock_is_contended_a_call_keeps_to_one_partition(store: Store, db_url: str) -> None:
    """Given a partition's lock held by another, then writers of other partitions soon pass it by."""
    holder = await connect(db_url)
    await holder.execute("begin")
    await holder.execute("select pg_advisory_xact_lock(1685218930, 3)")
    committer = Committer(store.log, store.notifier)
    stuck = asyncio.create_task(committer.commit(Transition(append=some_append(stream_in(3)))))

    async def waits() -> bool:
        waiting = """
            select count(*) from pg_locks join pg_database d on d.oid = database
            where locktype = 'advisory' and not granted and datname = current_database()"""
        return bool(await holder.fetchval(waiting))

    await eventually(waits, what="the commit that waits for the lock")
    assert not stuck.done()
    await holder.execute("commit")
    assert (await stuck).verdict == "accepted"
    assert committer._apart > 0
    taken = [
        asyncio.create_task(committer.commit(Transition(append=some_append(stream_in(partition)))))
        for partition in (1, 2, 1)
    ]
    assert {answer.verdict for answer in await asyncio.gather(*taken)} == {"accepted"}
    await committer.stop()
    await holder.close()


async def test_after_stop_a_commit_is_rejected(store: Store) -> None:
    """Stopping twice is harmless; committing afterwards is a mistake."""
    await store.committer.commit(Transition(append=some_append()))
    await store.committer.stop()
    await store.committer.stop()
    with pytest.raises(DatabaseUnavailable, match="stops"):
        await store.committer.commit(Transition(append=some_append()))


async def test_what_is_given_up_while_the_database_is_away_does_not_pile_up(store: Store) -> None:
    """Given clients who are told 503 and leave, then nothing of what they asked is kept, nor written later."""
    committer = Committer(Log(Database("postgresql://nobody@127.0.0.1:9/nothing")), store.notifier)
    for _ in range(20):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(committer.commit(Transition(append=some_append())), 0.01)
    assert not committer._pending
    await committer.stop()
