"""A fleet is upgraded one process at a time: an old one stops before what it does not know, a new one goes on."""

from contextlib import ExitStack
from pathlib import Path
from uuid import UUID

import httpx
import msgspec

from artifacts.object_store import S3Config
from eventstore.ids import new_id
from tests.kit import Api, Service, codes, connect, eventually, roles_environ

LATER_RELEASE = '''
"""This release as a later one will be: with one more kind of event."""
from typing import ClassVar
import msgspec
from orchestrator import codec
from orchestrator.events.base import DomainEvent

class JobAnnotated(DomainEvent, frozen=True, kw_only=True):
    code: ClassVar[str] = "job.annotated"
    def message(self):
        return "Annotated."

codec.EVENT_TYPE_BY_CODE["job.annotated"] = JobAnnotated
codec._DECODERS["job.annotated"] = msgspec.json.Decoder(JobAnnotated)
'''


async def annotate(db_url: str, job_id: str, version: int) -> None:
    """What a process of the later release appends to a job."""
    event = {
        "event_id": str(new_id()),
        "code": "job.annotated",
        "schema_version": 1,
        "ts": "2026-01-01T00:00:00Z",
        "data": "{}",
        "meta": "{}",
        "private": None,
    }
    append = {"stream": job_id, "category": "job", "tenant": "default", "expected": version, "events": [event]}
    connection = await connect(db_url)
    rows = await connection.fetch("select * from eventstore.commit($1::json)", msgspec.json.encode([append]).decode())
    assert rows[0]["outcome"] == "accepted"
    await connection.close()


def in_partition_of(api: Api, job_id: str) -> str:
    """Another job of the same partition."""
    while True:
        other = api.create(count=1, scale=None)
        if UUID(other).bytes[-1] & 7 == UUID(job_id).bytes[-1] & 7:
            return other


def trouble(service: Service) -> str:
    """What /readyz says is down; nothing while it is ready."""
    answer = httpx.get(f"{service.health_url}/readyz", trust_env=False)
    return answer.text if answer.status_code == 503 else ""


async def test_an_old_orchestrator_stops_before_what_it_does_not_know(
    db_url: str, s3_config: S3Config, tmp_path: Path
) -> None:
    """Given an event of a later release, then the old one says where it stands, and the new one skips nothing."""
    (tmp_path / "sitecustomize.py").write_text(LATER_RELEASE)
    environ = roles_environ(db_url, s3_config, DF_POLL_S="0.2")
    with ExitStack() as stack:

        def start(role: str, **more: str) -> Service:
            service = Service(role, environ | more)
            stack.callback(service.stop)
            return service

        api = Api(start("api").url)
        stack.callback(api.close)
        old = start("orchestrator")
        first = api.create(count=1, scale=None)
        await annotate(db_url, first, 1)
        waiting = in_partition_of(api, first)

        async def stopped() -> bool:
            return "job.annotated" in trouble(old)

        await eventually(stopped, what="the old orchestrator's stop")
        assert api.job(waiting)["status"] == "queued"

        start("runner")
        start("orchestrator", PYTHONPATH=str(tmp_path))
        for job in (first, waiting):
            assert api.finished(job)["status"] == "succeeded"
            assert codes(api.history(job)).count("step.start") == 1
            assert codes(api.history(job)).count("job.finish") == 1
