"""An operator looks how far the read models have come, and whether they say what the log says."""

import json
import random
from typing import Any

from artifacts.object_store import S3Config
from eventstore.log import Batch
from projections import job_view
from projections.rebuild import Rebuild
from tests import histories
from tests.http.conftest import consumer, running
from tests.kit import Service, Store, connect, dreamforge, eventually, roles_environ


def projections(environ: dict[str, str], *arguments: str, code: int = 0) -> Any:
    """The answer of `dreamforge projections`, which must exit so."""
    done = dreamforge("projections", *arguments, "--json", **environ)
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout)


async def test_lag_and_agreement(db_url: str, s3_config: S3Config) -> None:
    """Given a projector that is not there, then the lag is told; once it has caught up, there is none."""
    environ = roles_environ(db_url, s3_config)
    with running("api", db_url, s3_config) as service, consumer(service) as api:
        jobs = [api.create() for _ in range(10)]
    projector = Service("projector", environ)
    try:

        async def caught_up() -> bool:
            found = projections(environ, "status")["projections"]
            assert {one["projection"] for one in found} <= {"readmodel"}
            return bool(sum(one["position"] for one in found) == len(jobs))

        await eventually(caught_up)
    finally:
        projector.stop()
    with running("api", db_url, s3_config) as service, consumer(service) as api:
        api.create()
    [behind] = [one for one in projections(environ, "status")["projections"] if one["lag"]]
    assert (behind["lag"], behind["rate"]) == (1, 0.0)
    assert behind["lag_s"] > 0
    assert projections(environ, "verify") == {"jobs": 11, "wrong": 0, "disagreements": [], "waiting": 1}

    connection = await connect(db_url)
    await connection.execute("update readmodel.jobs set status = 'failed'")
    await connection.close()
    found = projections(environ, "verify", "--first", "3", code=1)
    assert (found["jobs"], found["wrong"], len(found["disagreements"])) == (11, 10, 3)
    assert {"path": "status", "before": "queued", "after": "failed"} in found["disagreements"][0]["differences"]
    told = dreamforge("projections", "verify", **environ)
    assert "10 of 11 job(s) disagree" in told.stdout


def test_tables_are_for_people(db_url: str, s3_config: S3Config) -> None:
    environ = roles_environ(db_url, s3_config)
    assert "PROJECTION" in dreamforge("projections", "status", **environ).stdout
    empty = dreamforge("projections", "verify", **environ)
    assert (empty.returncode, "agrees" in empty.stdout) == (1, False)
    assert "nothing was compared: the log has no job" in empty.stderr


async def test_rebuild_and_rollback(db_url: str, s3_config: S3Config) -> None:
    """Given rows that lie, when the read model is rebuilt with the service's login, then they agree; and back again."""
    environ = roles_environ(db_url, s3_config)
    with running("api", db_url, s3_config) as service, consumer(service) as api:
        for _ in range(3):
            api.create()
    projector = Service("projector", environ)
    try:

        async def caught_up() -> bool:
            return bool(sum(one["position"] for one in projections(environ, "status")["projections"]) == 3)

        await eventually(caught_up)
        connection = await connect(db_url)
        await connection.execute("update readmodel.jobs set count = 9")
        await connection.close()
        assert projections(environ, "verify", code=1)["wrong"] == 3

        plan = projections(environ, "rebuild", "--dry-run")
        assert (plan["events"], plan["state"]["generation"], plan["state"]["rebuild"]) == (3, 1, None)
        done = projections(environ, "rebuild", "--workers", "2")
        assert (done["generation"], done["events"]) == (2, 3)
        assert done["lag_s"] <= 1.0
        assert projections(environ, "verify")["wrong"] == 0

        assert projections(environ, "rollback")["generation"] == 1
        assert projections(environ, "verify", code=1)["wrong"] == 3
        told = dreamforge("projections", "rebuild", **environ)
        assert "Generation 3 serves: 3 events" in told.stdout
        assert projections(environ, "rebuild", "--abort") == {"aborted": False}
        assert "Generation 3 of the read model serves" in dreamforge("projections", "status", **environ).stdout
    finally:
        projector.stop()


async def test_a_rebuild_that_was_killed_goes_on(store: Store, db_url: str, s3_config: S3Config) -> None:
    """Given a rebuild killed while it filled, then the next run fills only what is left."""
    rng = random.Random(3)
    appends = [histories.append(histories.history(rng)) for _ in range(30)]
    await store.log.commit(Batch(appends=appends))
    await store.database.execute_once("select projector.begin_rebuild($1, 1, false)", job_view.VIEWS_VERSION)
    environ = roles_environ(db_url, s3_config)
    rebuild = Rebuild(store.database)
    killed = Service("projections", environ, "rebuild", "--workers", "1")

    async def some_filled() -> bool:
        under_way = (await rebuild.state()).rebuild
        return under_way is not None and under_way.filled > 0

    await eventually(some_filled)
    killed.kill()
    assert projections(environ, "rebuild")["generation"] == 2
    assert projections(environ, "verify") == {"jobs": 30, "wrong": 0, "disagreements": [], "waiting": 0}


def test_there_is_nothing_to_roll_back_to(db_url: str, s3_config: S3Config) -> None:
    told = dreamforge("projections", "rollback", **roles_environ(db_url, s3_config))
    assert told.returncode == 5
    assert "none has been rebuilt yet" in told.stderr


async def test_pause_and_resume(db_url: str, s3_config: S3Config) -> None:
    """Given a paused projector, then a new job is in no list until it is resumed, and can be read all the while."""
    environ = roles_environ(db_url, s3_config)
    with (
        running("api", db_url, s3_config) as service,
        running("projector", db_url, s3_config),
        consumer(service) as api,
    ):
        first = api.create()

        async def listed() -> list[str]:
            return [one["id"] for one in api.get("/v1/jobs")["jobs"]]

        async def first_is_listed() -> bool:
            return await listed() == [first]

        await eventually(first_is_listed)
        projections(environ, "pause")
        second = api.create()
        assert api.job(second)["status"] == "queued"
        status = projections(environ, "status")
        assert all(one["paused"] for one in status["projections"])
        assert await listed() == [first]
        projections(environ, "resume")

        async def both_are_listed() -> bool:
            return await listed() == [second, first]

        await eventually(both_are_listed)


async def test_a_release_with_other_views_rebuilds_by_itself(store: Store, db_url: str, s3_config: S3Config) -> None:
    """Given a read model of an earlier release's views, when a projector starts, then its own takes over."""
    await store.database.execute_once("update readmodel.generation set version = 0")
    await store.log.commit(Batch(appends=[histories.append(histories.history(random.Random(5)))]))
    rebuild = Rebuild(store.database)
    with running("projector", db_url, s3_config):

        async def taken_over() -> bool:
            state = await rebuild.state()
            return (state.generation, state.views_version) == (2, job_view.VIEWS_VERSION)

        await eventually(taken_over)
    assert projections(roles_environ(db_url, s3_config), "verify") == {
        "jobs": 1,
        "wrong": 0,
        "disagreements": [],
        "waiting": 0,
    }
