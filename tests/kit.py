"""The tests' shared vocabulary: backends, jobs as events, services as processes, and waiting."""

import asyncio
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self, TypeVar
from uuid import UUID

import asyncpg
import httpx
import msgspec
from prometheus_client.parser import text_string_to_metric_families

from artifacts.object_store import S3Config
from dreamforge.backends import replace_url_login
from eventstore.committer import Committer
from eventstore.database import Database
from eventstore.events import NewEvent
from eventstore.ids import new_id
from eventstore.log import Append, Log
from eventstore.notifier import Notifier
from orchestrator import codec
from orchestrator.events import (
    ArtifactEvent,
    ArtifactRewritten,
    ArtifactWritten,
    DecodedEvent,
    DomainEvent,
    JobCreated,
    Meta,
    ModelFile,
    ModelRegistered,
    PersonalText,
    PlannedStep,
    StepFinish,
    StepName,
    StepStart,
)
from orchestrator.parameters import GenerateParams, UpscaleParams
from orchestrator.state import JobState, apply
from tests import pooler, processes

T = TypeVar("T")
TERMINAL = {"succeeded", "failed", "cancelled"}
NOBODY = UUID("018f0000-0000-7000-8000-000000000001")
"""An id that names nothing; a parameter of tests, so the same in every process that collects them."""
NOON = datetime(2026, 1, 2, 12, 0, 0, tzinfo=UTC)


# Events ------------------------------------------------------------------------------------------


def generate_params(**changes: Any) -> GenerateParams:
    """Parameters of a generate step: one tiny image, unless changed."""
    given: dict[str, Any] = {
        "width": 64,
        "height": 64,
        "steps": 2,
        "guidance": 7.0,
        "scheduler": None,
        "format": "png",
        "embed_metadata": True,
        "seed": 7,
        "count": 1,
        "model_id": None,
        "provider": None,
        "engine": None,
    }
    return GenerateParams(**given | changes)


def job_created(*, scale: int | None = 2, **generate: Any) -> JobCreated:
    """The first event of a chained job, or of a single one without scale."""
    names: list[StepName] = ["generate"] if scale is None else ["generate", "upscale"]
    return JobCreated(
        type="generate",
        steps=[PlannedStep(step_id=new_id(), name=name) for name in names],
        generate=generate_params(**generate),
        upscale=None if scale is None else UpscaleParams(scale=scale, impl="auto", strict_scale=False),  # type: ignore[arg-type]
    )


def model_registered(**changes: Any) -> ModelRegistered:
    """The first event of a model: a generator of one small file, unless changed."""
    given: dict[str, Any] = {
        "name": "castles",
        "kind": "generator",
        "version": "1",
        "source_uri": "file:///models/castles",
        "local_path": "/models/castles",
        "files": [ModelFile(path="weights.bin", sha256="0" * 64, size=10)],
        "capabilities": ["generate"],
        "parameters_schema": {"type": "object"},
    }
    return ModelRegistered(**given | changes)


def event(body: DomainEvent, *, private: PersonalText | None = None, meta: Meta | None = None) -> NewEvent:
    """An event to append."""
    return codec.new_event(new_id(), datetime.now(UTC), body, meta or Meta(), private)


def some_append(stream: UUID | None = None, *, expected: int = 0, count: int = 1, **more: Any) -> Append:
    """Events whose meaning doesn't matter."""
    bodies = [StepStart(step_id=new_id(), step_name="generate", attempt=1, runner="r") for _ in range(count)]
    return Append(
        stream=stream or new_id(),
        expected=expected,
        events=tuple(event(body) for body in bodies),
        **{"category": "job"} | more,
    )


def stream_in(partition: int, partitions: int = 8) -> UUID:
    """A new stream id of a partition."""
    while True:
        stream = new_id()
        if stream.bytes[-1] & (partitions - 1) == partition:
            return stream


def decoded_event(
    body: DomainEvent, version: int, *, job_id: UUID, ts: datetime = NOON, private: PersonalText | None = None
) -> DecodedEvent:
    """A decoded event."""
    return DecodedEvent(
        stream_id=job_id,
        tenant="default",
        version=version,
        ts=ts,
        body=body,
        meta=Meta(),
        private=private or PersonalText(),
    )


class History:
    """A builder of a job's history."""

    def __init__(self, *, scale: int | None = 2, **generate: Any) -> None:
        self.job_id = new_id()
        self.created = job_created(scale=scale, **generate)
        self.events: list[DecodedEvent] = []
        self.add(self.created, private=PersonalText(prompt="a castle"))

    def add(self, *bodies: DomainEvent, private: PersonalText | None = None) -> Self:
        """Append events."""
        for body in bodies:
            self.events.append(decoded_event(body, len(self.events) + 1, job_id=self.job_id, private=private))
        return self

    def step_id(self, name: StepName) -> UUID:
        """The id of one of the job's steps."""
        return next(step.step_id for step in self.created.steps if step.name == name)

    def started(self, name: StepName, attempt: int = 1) -> Self:
        """A runner starts a step."""
        return self.add(StepStart(step_id=self.step_id(name), step_name=name, attempt=attempt, runner="r"))

    def item(self, name: StepName, index: int, attempt: int = 1) -> ArtifactWritten:
        """The artifact of an item of a step."""
        return ArtifactWritten(
            step_id=self.step_id(name),
            step_name=name,
            attempt=attempt,
            item_index=index,
            artifact_id=new_id(),
            format="png",
            width=64,
            height=64,
            seed=index + 1,
            s3_key=f"{name}/{index}",
            bytes=10,
            sha256="0" * 64,
        )

    def rewritten(self, name: StepName, index: int) -> ArtifactRewritten:
        """The rewritten artifact of an item, after an erasure."""
        written = next(step for step in self.state.steps if step.name == name).artifacts[index]
        kept = {field: getattr(written, field) for field in ArtifactEvent.__struct_fields__}
        return ArtifactRewritten(**kept | {"bytes": 9, "sha256": "1" * 64})

    def wrote(self, name: StepName, *indexes: int, attempt: int = 1) -> Self:
        """Items of a step are written."""
        return self.add(*(self.item(name, index, attempt) for index in indexes))

    def finished(self, name: StepName, status: Any = "succeeded", attempt: int = 1) -> Self:
        """A step ends."""
        return self.add(StepFinish(step_id=self.step_id(name), step_name=name, attempt=attempt, status=status))

    @property
    def state(self) -> JobState:
        """The job's state after all events."""
        state: JobState | None = None
        for one in self.events:
            state = apply(state, one)
        assert state is not None
        return state


# The store ---------------------------------------------------------------------------------------


class Store:
    """An event store on its own database."""

    def __init__(self, url: str, *, listen: bool = True) -> None:
        listen = listen and pooler.listens()
        self.database = Database(pooler.through(url), listen_url=url if listen else None, pooled=pooler.wanted())
        self.log = Log(self.database)
        self.notifier = Notifier(self.database)
        self.committer = Committer(self.log, self.notifier)

    async def close(self) -> None:
        """Close all connections."""
        await self.committer.stop()
        await self.notifier.stop()
        await self.database.close()

    async def codes(self, stream: UUID) -> list[str]:
        """The codes of a stream's events."""
        return [one.code for one in await self.log.read_stream(stream)]

    async def state(self, job_id: UUID) -> JobState:
        """The folded state of a job."""
        state: JobState | None = None
        for one in await self.log.read_stream(job_id):
            state = apply(state, codec.decode_event(one))
        assert state is not None
        return state


async def connect(url: str) -> asyncpg.Connection:
    """A plain connection, for changes that bypass the store."""
    return await asyncpg.connect(url)


async def eventually(probe: Callable[[], Awaitable[T]], *, within: float = 20.0, what: str = "it") -> T:
    """Wait until a probe returns a true value. The timeout only ends a test that hangs."""
    deadline = time.monotonic() + within
    while True:
        found = await probe()
        if found:
            return found
        assert time.monotonic() < deadline, f"{what} did not come true within {within:g} s; last answer: {found!r}"
        await asyncio.sleep(0.02)


# Services ----------------------------------------------------------------------------------------


def outside() -> dict[str, str]:
    """The environment of the tests without settings."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("DF_", "AWS_"))}


class Service:
    """One `dreamforge` process."""

    def __init__(self, role: str, environ: Mapping[str, str], *arguments: str) -> None:
        self.role = role
        command = ["--no-env-file", role, *arguments]
        own = {**outside(), "DF_LOG_FORMAT": "json", **environ}
        reads, writes = os.pipe()
        with Path(os.devnull).open("r+b") as nothing:
            self.process = processes.spawn(command, own, [nothing.fileno(), nothing.fileno(), writes])
        os.close(writes)
        self._log = os.fdopen(reads, "rb")
        self.lines: list[str] = []
        self._urls: dict[str, str] = {}
        self._told = {"listening": threading.Event(), "serving health": threading.Event()}
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for raw in self._log:
            line = raw.decode(errors="replace")
            self.lines.append(line)
            for event, told in self._told.items():
                if f'"{event}"' in line:
                    self._urls[event] = json.loads(line)["url"]
                    told.set()
        for told in self._told.values():
            told.set()

    @property
    def url(self) -> str:
        """The URL of the API. Waits until it listens."""
        return self._announced("listening")

    @property
    def health_url(self) -> str:
        """The health URL of a role without an API. Waits until it listens."""
        return self._announced("serving health")

    @property
    def announced(self) -> str | None:
        """The URL of the API or the health endpoint; None before the process has logged it."""
        return next(iter(self._urls.values()), None)

    def _announced(self, event: str) -> str:
        assert self._told[event].wait(60), f"{self.role} does not say {event!r}:\n{self.output}"
        assert event in self._urls, f"{self.role} ended before it said {event!r}:\n{self.output}"
        return self._urls[event]

    @property
    def output(self) -> str:
        """The end of the process's log."""
        return "".join(self.lines[-40:])

    def stop(self) -> int:
        """SIGTERM, and wait for the end."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self._wait(30)

    def kill(self) -> None:
        """SIGKILL."""
        if self.process.poll() is None:
            self.process.kill()
        self._wait(10)

    def _wait(self, seconds: float) -> int:
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10)
            raise AssertionError(f"{self.role} did not stop within {seconds:g} s:\n{self.output}") from None
        finally:
            self._reader.join(10)
            self._log.close()
        return code


def dreamforge(*arguments: str, **more: str) -> "subprocess.CompletedProcess[str]":
    """Run a command to its end."""
    return processes.run(["--no-env-file", *arguments], outside() | more)


SERVICE_LOGIN = ("df_test_service", "df_test_service")
"""User and password of the service's login, which has the service's rights and owns nothing."""


def roles_environ(db_url: str, s3: S3Config, **more: str) -> dict[str, str]:
    """The environment of a role on given backends. db_url: its owner's; the role gets the service's login."""
    direct = replace_url_login(db_url, *SERVICE_LOGIN)
    return {
        "DF_DB_URL": pooler.through(direct),
        "DF_DB_LISTEN_URL": direct if pooler.listens() else "off",
        **({"DF_DB_POOLER": "transaction"} if pooler.wanted() else {}),
        "DF_S3_ENDPOINT": s3.endpoint or "",
        "DF_S3_ACCESS_KEY": s3.access_key,
        "DF_S3_SECRET_KEY": s3.secret_key,
        "DF_S3_BUCKET": s3.bucket,
        "DF_FAKE_RUNNER": "1",
        "DF_PORT": "0",
        "DF_WORKER_METRICS_PORT": "0",
        "DF_ORCHESTRATOR_METRICS_PORT": "0",
        "DF_PROJECTOR_METRICS_PORT": "0",
        **more,
    }


class Sse(msgspec.Struct, frozen=True):
    """One server-sent event."""

    event: str
    data: Any
    id: str | None


class Api:
    """A REST consumer."""

    def __init__(self, base: str) -> None:
        self.base = base
        self.http = httpx.Client(base_url=base, timeout=30, trust_env=False)

    def close(self) -> None:
        """Close the connections."""
        self.http.close()

    def post(self, body: object, **headers: str) -> httpx.Response:
        """POST /v1/jobs."""
        return self.http.post("/v1/jobs", json=body, headers=headers)

    def create(self, *, scale: int | None = 2, **more: Any) -> str:
        """Create a small job. Returns its id."""
        body: dict[str, Any] = {"type": "generate", "prompt": "a castle", "width": 64, "height": 64, "steps": 2} | more
        if scale is not None:
            body["chain"] = {"upscale": {"scale": scale}}
        answer = self.post(body)
        assert answer.status_code in {200, 202}, answer.text
        return str(answer.json()["job"]["id"])

    def get(self, path: str, **params: Any) -> Any:
        """GET, expecting 200. Returns the JSON."""
        answer = self.http.get(path, params=params)
        assert answer.status_code == 200, f"{answer.status_code} {answer.text}"
        return answer.json()

    def job(self, job_id: str) -> Any:
        """GET /v1/jobs/{id}."""
        return self.get(f"/v1/jobs/{job_id}")

    def artifacts(self, job_id: str, **params: Any) -> list[Any]:
        """GET /v1/jobs/{id}/artifacts."""
        return list(self.get(f"/v1/jobs/{job_id}/artifacts", **params)["artifacts"])

    def history(self, job_id: str) -> list[Any]:
        """All events of a job."""
        events: list[Any] = []
        after = 0
        while True:
            page = self.get(f"/v1/jobs/{job_id}/events", after_version=after, limit=1000)
            events.extend(page["events"])
            if not page["has_more"]:
                return events
            after = page["next_after_version"]

    def finished(self, job_id: str, *, within: float = 60.0) -> Any:
        """The job once it is terminal."""
        deadline = time.monotonic() + within
        while True:
            job = self.job(job_id)
            if job["status"] in TERMINAL:
                return job
            assert time.monotonic() < deadline, f"job {job_id} is still {job['status']}: {job['steps']}"
            time.sleep(0.03)

    def stream(self, job_id: str, *, last_event_id: str | None = None, **params: Any) -> list[Sse]:
        """All messages of a job's stream, until the server ends it."""
        headers = {} if last_event_id is None else {"Last-Event-ID": last_event_id}
        with self.http.stream("GET", f"/v1/jobs/{job_id}/progress/stream", params=params, headers=headers) as answer:
            assert answer.status_code == 200
            return parse_sse(answer.read().decode())


def parse_sse(text: str) -> list[Sse]:
    """The events of a stream in the contract's format: event, data and id, each on one line."""
    events: list[Sse] = []
    for frame in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in frame.splitlines() if ": " in line)
        if "data" in fields:
            events.append(Sse(fields.get("event", "message"), json.loads(fields["data"]), fields.get("id")))
    return events


class Metrics:
    """The metrics of a process."""

    def __init__(self, base: str) -> None:
        answer = httpx.get(f"{base}/metrics", timeout=30, trust_env=False)
        assert answer.status_code == 200, f"{answer.status_code} {answer.text}"
        self.samples = [sample for family in text_string_to_metric_families(answer.text) for sample in family.samples]

    def value(self, name: str, **labels: str) -> float | None:
        """The value of the sample with this name and exactly these labels; None if there is none."""
        found = [one.value for one in self.samples if (one.name, one.labels) == (name, labels)]
        assert len(found) <= 1, f"{name} is there twice"
        return found[0] if found else None

    def labelled(self, name: str, label: str) -> set[str]:
        """The values that a label of a metric has."""
        return {one.labels[label] for one in self.samples if one.name == name}


def codes(events: Sequence[Any]) -> list[str]:
    """The codes of a history."""
    return [one["code"] for one in events]


def project_root() -> Path:
    """The checkout."""
    return Path(__file__).parent.parent
