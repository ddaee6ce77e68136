"""An operator looks how far the read models have come, and whether they say what the log says."""

import json
from typing import Any

from runners.objects import S3Config
from tests.http.conftest import consumer, running
from tests.kit import Service, connect, dreamforge, eventually, roles_environ


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
            found = projections(environ, "status")
            assert {one["projection"] for one in found} == {"readmodel"}
            return bool(sum(one["position"] for one in found) == len(jobs))

        await eventually(caught_up)
    finally:
        projector.stop()
    with running("api", db_url, s3_config) as service, consumer(service) as api:
        api.create()
    [behind] = [one for one in projections(environ, "status") if one["lag"]]
    assert (behind["lag"], behind["rate"]) == (1, 0.0)
    assert behind["lag_s"] > 0
    assert projections(environ, "verify") == {"jobs": 11, "wrong": 0, "disagreements": []}

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
    assert "agrees with the log: 0 job(s)" in dreamforge("projections", "verify", **environ).stdout
