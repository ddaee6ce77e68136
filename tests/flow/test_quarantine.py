"""One job that can't be read, or that breaks our code, is set aside: its neighbours go on, and every command works."""

import asyncio
import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest

from artifacts.object_store import S3Config
from eventstore.ids import new_id
from tests import poison
from tests.kit import Api, Metrics, Service, codes, connect, dreamforge, eventually, project_root, roles_environ

Start = Callable[..., Service]
Client = Callable[[Service], Api]

MENDED = '''
"""This release as a later one will be: it can read what this one can't."""
from typing import Any
import msgspec
from orchestrator import codec
from orchestrator.events import steps

class StepStart(steps.StepStart, frozen=True, kw_only=True):
    runner: str = "unknown"

codec._DECODERS["step.start"] = msgspec.json.Decoder(StepStart)

created = codec._DECODERS["job.created"]

class Created:
    """Takes a format that it can't make for the one that it can."""
    def decode(self, text):
        return created.decode(text.replace('"avif"', '"png"'))

codec._DECODERS["job.created"] = Created()
'''

BROKEN = '''
"""This release with a bug in the code that reads jobs of one seed."""
import orchestrator.process_manager
import projections.projector
from orchestrator.events.jobs import JobCreated

react = orchestrator.process_manager.react
evolve = projections.projector.evolve_view

def breaks_react(state, body):
    if state.generate.seed == 4711:
        raise RuntimeError("the rules break")
    return react(state, body)

def breaks_evolve(seen, event):
    if isinstance(event.body, JobCreated) and event.body.generate.seed == 4712:
        raise RuntimeError("the fold breaks")
    return evolve(seen, event)

orchestrator.process_manager.react = breaks_react
projections.projector.evolve_view = breaks_evolve
'''


@pytest.fixture
def environ(db_url: str, s3_config: S3Config) -> dict[str, str]:
    """The environment of every process, commands included."""
    return roles_environ(db_url, s3_config, DF_POLL_S="0.2", DF_LEASE_S="4")


@pytest.fixture
def start(environ: dict[str, str], tmp_path: Path) -> Iterator[Start]:
    """Starts a role; with code given, that is imported before all else."""
    with ExitStack() as stack:

        def run(role: str, code: str = "") -> Service:
            more = {}
            if code:
                folder = tmp_path / new_id().hex
                folder.mkdir()
                (folder / "sitecustomize.py").write_text(code)
                more["PYTHONPATH"] = os.pathsep.join([str(folder), str(project_root())])
            service = Service(role, environ | more)
            stack.callback(service.stop)
            return service

        yield run


@pytest.fixture
def client() -> Iterator[Client]:
    """Makes REST consumers of services."""
    with ExitStack() as stack:

        def make(service: Service) -> Api:
            api = Api(service.url)
            stack.callback(api.close)
            return api

        yield make


def neighbour(api: Api, job: UUID) -> str:
    """Another job of the same partition."""
    while True:
        other = api.create(count=1, scale=None)
        if UUID(other).bytes[-1] & 7 == job.bytes[-1] & 7:
            return other


async def until_quarantined(api: Api, job: UUID) -> Any:
    """The job once it is set aside."""

    async def is_failed() -> Any:
        answer = api.http.get(f"/v1/jobs/{job}")
        assert answer.status_code in {200, 404}, answer.text
        return answer.status_code == 200 and answer.json()["status"] == "failed" and answer.json()

    return await eventually(is_failed, what="the quarantine")


def readiness(service: Service) -> str:
    """What a role says of its readiness."""
    return httpx.get(f"{service.health_url}/readyz", trust_env=False).text


def answered(environ: dict[str, str], *command: str, code: int = 0) -> str:
    """What a command prints; it must not break."""
    done = dreamforge(*command, **environ)
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode == code, f"{done.stdout}{done.stderr}"
    return done.stdout


async def poisoned(db_url: str, api: Api, case: str) -> UUID:
    """A job that can't be read from its beginning, its middle or its end on."""
    if case == "created":
        job = new_id()
        await poison.append(db_url, job, 0, *poison.UNKNOWN_VALUE)
        return job
    job = UUID(api.create(count=1, scale=None))
    if case == "started":
        step_id = api.job(str(job))["steps"][0]["id"]
        await poison.append(db_url, job, 1, *poison.without_runner(step_id))
    else:
        ended = api.finished(str(job))
        event = poison.NO_SUCH_OUTCOME if case == "finished" else poison.unstorable(ended["steps"][0]["id"])
        await poison.append(db_url, job, ended["version"], *event)
    return job


@pytest.mark.parametrize("case", ["created", "started", "finished", "unstorable"])
async def test_a_job_that_cannot_be_read_is_set_aside(
    db_url: str, environ: dict[str, str], start: Start, client: Client, case: str
) -> None:
    """Given one poison event, then the job is failed and every reader takes it, and its neighbour succeeds."""
    api = client(start("api"))
    start("projector")
    orchestrator = start("orchestrator")
    ends_first = case in {"finished", "unstorable"}
    if ends_first:
        start("runner")
    job = await poisoned(db_url, api, case)
    if not ends_first:
        start("runner")
    assert api.finished(neighbour(api, job))["status"] == "succeeded"
    seen = await until_quarantined(api, job)
    assert (seen["error_code"], seen["version"]) == ("internal", 2 + (case == "started") + 6 * ends_first)

    assert api.http.post(f"/v1/jobs/{job}/cancel").status_code == 409
    assert api.http.post(f"/v1/jobs/{job}/retry").status_code == 409
    assert codes(api.history(str(job)))[-1] == "job.quarantined"
    assert [one.event for one in api.stream(str(job))][-1] == "progress"
    for path in ("", "/progress", "/logs", "/artifacts"):
        assert api.http.get(f"/v1/jobs/{job}{path}").status_code == 200

    async def is_listed() -> bool:
        return str(job) in [one["id"] for one in api.get("/v1/jobs", status="failed")["jobs"]]

    await eventually(is_listed, what="the failed job in the list")
    assert "is stalled" not in readiness(orchestrator)
    assert "1 job(s) set aside" in readiness(orchestrator)
    assert "agrees" in answered(environ, "projections", "verify")


async def test_whoever_cannot_read_a_job_has_it_set_aside(
    db_url: str, environ: dict[str, str], start: Start, client: Client
) -> None:
    """Given an event that breaks decisions alone, after which nothing comes, then whoever meets it reports it."""
    api = client(start("api"))
    start("orchestrator")
    runner = start("runner")
    found = [api.finished(api.create(count=1, scale=None)) for _ in range(3)]
    runner.stop()
    askers: dict[str, tuple[int, Callable[[str], int]]] = {
        "api": (503, lambda job: api.http.post(f"/v1/jobs/{job}/cancel").status_code),
        "audit": (3, lambda job: dreamforge("audit", "erase", job, **environ | {"DF_DB_URL": db_url}).returncode),
        "outbox": (0, lambda _: dreamforge("outbox", "status", **environ).returncode),
    }
    for (reader, (answer, ask)), ended in zip(askers.items(), found, strict=True):
        job = ended["id"]
        await poison.append(db_url, UUID(job), ended["version"], *poison.foreign_start())
        assert ask(job) == answer

        async def is_aside(job: str = job, ask: Callable[[str], int] = ask) -> bool:
            return bool(api.job(job)["status"] == "failed") or ask(job) < 0

        await eventually(is_aside, what=f"the report of {reader}")
        [newest, *_] = json.loads(answered(environ, "jobs", "quarantine", "list", "--output", "json"))
        assert (newest["job_id"], newest["reader"], newest["reason"]) == (job, reader, "KeyError")
        assert api.http.post(f"/v1/jobs/{job}/cancel").status_code == 409


@pytest.mark.parametrize("action", ["replay", "reproduce"])
async def test_a_command_names_the_job_that_it_cannot_fold(db_url: str, environ: dict[str, str], action: str) -> None:
    """Given a history without its beginning, which nobody has set aside yet, then the command says so and fails."""
    job = new_id()
    await poison.append(db_url, job, 0, *poison.foreign_start())
    done = dreamforge("audit", action, str(job), **environ)
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    assert f"the history of job {job} can't be read" in done.stderr


@pytest.mark.usefixtures("durable")
async def test_every_command_takes_a_job_that_is_set_aside(
    db_url: str, environ: dict[str, str], start: Start, client: Client
) -> None:
    """Given a job whose first event can't be read, then no command breaks, and those that should name it."""
    api = client(start("api"))
    start("projector")
    orchestrator = start("orchestrator")
    job = await poisoned(db_url, api, "created")
    await until_quarantined(api, job)
    answered(environ, "outbox", "status")
    answered(environ, "outbox", "rebuild")
    assert "agrees" in answered(environ, "projections", "verify")
    answered(environ, "projections", "rebuild", "--workers", "1")
    assert "agrees" in answered(environ, "projections", "verify")
    assert str(job) in answered(environ, "doctor")
    answered(environ, "audit", "show", str(job))
    answered(environ, "audit", "replay", str(job))
    answered(environ, "audit", "verify", "--all")
    [found] = json.loads(answered(environ, "jobs", "quarantine", "list", "--output", "json"))
    assert (found["job_id"], found["reader"], found["state"]) == (str(job), "orchestrator", "quarantined")
    assert str(job) in answered(environ, "jobs", "quarantine", "show", str(job)[:8])
    assert answered(environ, "jobs", "quarantine", "show", "no-such-job", code=4) == ""
    assert Metrics(orchestrator.health_url).value("df_quarantined_jobs") == 1
    assert str(job) in answered(environ, "jobs", "quarantine", "fail", str(job)[:8])
    assert json.loads(answered(environ, "jobs", "quarantine", "list", "--output", "json")) == []
    assert api.job(str(job))["status"] == "failed"
    assert str(job) in answered(environ | {"DF_DB_URL": db_url}, "audit", "erase", str(job), "--output", "json")


@pytest.mark.parametrize("case", ["created", "started"])
async def test_a_released_job_succeeds_with_mended_code(
    db_url: str, environ: dict[str, str], start: Start, client: Client, case: str
) -> None:
    """Given a release that can read the job, then it goes on where it stood; while none can, it is set aside again."""
    old = [start(role) for role in ("api", "orchestrator", "projector")]
    api = client(old[0])
    job = await poisoned(db_url, api, case)
    await until_quarantined(api, job)
    answered(environ, "jobs", "quarantine", "release", str(job))

    async def again() -> bool:
        return codes(api.history(str(job))).count("job.quarantined") == 2

    await eventually(again, what="the second quarantine")
    assert api.job(str(job))["status"] == "failed"
    for service in old:
        service.stop()
    for role in ("api", "orchestrator", "projector", "runner"):
        service = start(role, MENDED)
        if role == "api":
            api = client(service)
    answered(environ, "jobs", "quarantine", "release", str(job))

    async def succeeded() -> bool:
        return bool(api.job(str(job))["status"] == "succeeded")

    await eventually(succeeded, within=60, what="the released job's end")
    assert codes(api.history(str(job))).count("artifact.written") == 1
    assert api.get(f"/v1/jobs/{job}/progress")["progress"] == 1.0
    assert api.job(str(job))["summary"] == {"count": 1, "completed": 1}

    async def is_listed() -> bool:
        found = [(one["status"], one["summary"]["count"]) for one in api.get("/v1/jobs")["jobs"]]
        return found == [("succeeded", 1)]

    await eventually(is_listed, what="the row of the released job")


@pytest.mark.parametrize(("seed", "reader"), [(4711, "orchestrator"), (4712, "readmodel")])
async def test_a_job_that_breaks_the_code_is_set_aside(
    environ: dict[str, str], start: Start, client: Client, seed: int, reader: str
) -> None:
    """Given a bug in the rules, or in the fold of views, then the job is set aside; with mended code it succeeds."""
    api = client(start("api"))
    broken = [start(role, BROKEN) for role in ("orchestrator", "projector")]
    start("runner")
    job = UUID(api.create(count=1, scale=None, seed=seed))
    assert api.finished(neighbour(api, job))["status"] == "succeeded"
    await until_quarantined(api, job)
    [found] = json.loads(answered(environ, "jobs", "quarantine", "list", "--output", "json"))
    assert (found["reader"], found["reason"]) == (reader, "RuntimeError")
    for service in broken:
        service.stop()
    start("orchestrator")
    start("projector")
    answered(environ, "jobs", "quarantine", "release", str(job))

    async def succeeded() -> bool:
        return bool(api.job(str(job))["status"] == "succeeded")

    await eventually(succeeded, within=60, what="the released job's end")
    assert codes(api.history(str(job))).count("artifact.written") == 1


async def test_only_the_newest_release_sets_aside(db_url: str, start: Start, client: Client) -> None:
    """Given a schema of a later release, then a process of this one waits: the later may be able to read the job."""
    connection = await connect(db_url)
    await connection.execute(
        "insert into eventstore.releases (release, serves) select max(release) + 1, 1 from eventstore.releases"
    )
    api = client(start("api"))
    orchestrator = start("orchestrator")
    job = await poisoned(db_url, api, "created")

    async def stalled() -> bool:
        return str(job) in readiness(orchestrator)

    await eventually(stalled, what="the stalled partition")
    assert api.http.get(f"/v1/jobs/{job}").status_code == 404  # nothing can be read of it yet
    started = UUID(api.create(count=1, scale=None))
    await poison.append(db_url, started, 1, *poison.NO_SUCH_OUTCOME)
    assert api.job(str(started))["status"] == "queued"
    rejected = api.http.post(f"/v1/jobs/{started}/cancel")
    assert (rejected.status_code, rejected.json()["details"]) == (503, {"job_id": str(started)})
    await asyncio.sleep(2)  # several tries, each of which would have set it aside
    assert await connection.fetchval("select count(*) from eventstore.events where code = 'job.quarantined'") == 0
    await connection.execute(
        "delete from eventstore.releases where release = (select max(release) from eventstore.releases)"
    )
    await until_quarantined(api, job)
    await connection.close()


@pytest.mark.usefixtures("durable")
async def test_other_streams_that_cannot_be_read_stop_nobody(
    db_url: str, environ: dict[str, str], start: Start, client: Client
) -> None:
    """Given a poison model, key, anchor and note of the outbox, then readers go on, and the doctor names them."""
    streams = {}
    for category, code in (
        ("model", "model.registered"),
        ("key", "key.created"),
        ("outbox", "outbox.rebuilt"),
        ("anchor", "anchor.signed"),
    ):
        streams[category] = new_id()
        await poison.append(db_url, streams[category], 0, code, {"nonsense": []}, category=category)
    service = start("up")
    api = client(service)
    assert api.finished(api.create(count=1))["status"] == "succeeded"
    assert api.get("/v1/models")["models"] == []
    assert api.http.get(f"/v1/models/{streams['model']}").status_code == 404
    assert api.http.get("/v1/anchors").status_code == 200
    assert {one["stream"] for one in api.get("/v1/events")["events"]} >= set(map(str, streams.values()))
    for command in (["models", "list"], ["keys", "list"], ["outbox", "status"], ["projections", "verify"]):
        answered(environ, *command)
    answered(environ, "audit", "verify", "--all")
    told = answered(environ, "doctor")
    assert all(str(stream) in told for stream in streams.values())
