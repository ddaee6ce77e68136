"""An operator loses the queues, and gets them back."""

import json
from typing import Any

from artifacts.object_store import S3Config
from tests.kit import Api, Service, codes, dreamforge, roles_environ


def outbox(environ: dict[str, str], *arguments: str) -> Any:
    """The answer of `dreamforge outbox`, which must succeed."""
    done = dreamforge("outbox", *arguments, "--output", "json", **environ)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_lost_queues_are_rebuilt_and_every_job_ends(db_url: str, s3_config: S3Config) -> None:
    """Given waiting jobs and a purge, then status says what is missing, and a rebuild brings all to their end."""
    environ = roles_environ(db_url, s3_config, DF_LEASE_S="4")
    services = [Service(role, environ) for role in ("api", "orchestrator")]
    try:
        api = Api(services[0].url)
        jobs = [api.create(count=1, scale=None) for _ in range(5)]
        while sum(queue["visible"] for queue in outbox(environ, "status")) < len(jobs):
            pass
        assert outbox(environ, "purge") == {"generate": 5, "upscale": 0}
        assert outbox(environ, "rebuild", "--dry-run") == []
        assert outbox(environ, "purge", "--yes") == {"generate": 5, "upscale": 0}
        lost = dreamforge("outbox", "status", **environ)
        assert lost.returncode == 1
        assert "dreamforge outbox rebuild" in lost.stderr
        assert len(outbox(environ, "rebuild", "--dry-run")) == 5
        assert {one["job_id"] for one in outbox(environ, "rebuild")} == set(jobs)
        assert outbox(environ, "rebuild") == []
        services.append(Service("runner", environ))
        for job in jobs:
            assert api.finished(job)["status"] == "succeeded"
            assert codes(api.history(job)).count("step.start") == 1
        told = [event["code"] for event in api.get("/v1/events", category="outbox")["events"]]
        assert told == ["outbox.purged", "outbox.rebuilt"]
        api.close()
    finally:
        for service in services:
            service.stop()
