"""Services for the contract's tests: APIs without runners, whose jobs wait or proceed as a test writes their events."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import datetime, timedelta
from typing import Any

import httpx
import pytest

from artifacts.object_store import S3Config
from eventstore.ids import new_id
from eventstore.log import Append, Batch
from orchestrator import codec
from orchestrator.events import JobFinish, Meta, StepName
from tests.conftest import Backends, fresh_database
from tests.kit import NOON, Api, History, Service, Store, eventually, roles_environ

LONE_HEARTBEAT_S = 0.3
TUNED = {
    "DF_PRESIGN_EXPIRES_S": "1",
    "DF_LOGS_TAIL_DEFAULT": "3",
    "DF_LOGS_TAIL_MAX": "5",
    "DF_PROGRESS_WEIGHTS": "generate:1,upscale:3",
    "DF_MAX_STREAMS": "2",
    "DF_MAX_BODY_BYTES": "2048",
    "DF_MAX_PIXELS": "65536",
}
OLD = {
    "DF_CREATE_STATUS": "200",
    "DF_EAGER": "yes",
    "DF_EAGER_TIMEOUT_S": "0.3",
    "DF_PRESIGN_EXPIRES_S": "999999",
    "DF_PROGRESS_WEIGHTS": "generate:nan,upscale:1",
}
BODY = {"type": "generate", "prompt": "a castle", "width": 64, "height": 64, "steps": 2}


@contextmanager
def running(role: str, url: str, s3: S3Config, **environ: str) -> Iterator[Service]:
    """A service for as long as the block."""
    service = Service(role, roles_environ(url, s3, **environ))
    try:
        yield service
    finally:
        service.stop()


@contextmanager
def consumer(service: Service) -> Iterator[Api]:
    """A REST consumer of a service."""
    api = Api(service.url)
    try:
        yield api
    finally:
        api.close()


@pytest.fixture(scope="session")
def lone_url(backends: Backends) -> Iterator[str]:
    """A database on which no runner, orchestrator or projector works: its jobs move only as tests write them."""
    with fresh_database(backends) as url:
        yield url


@pytest.fixture(scope="session")
def lone(lone_url: str, s3_config: S3Config) -> Iterator[Api]:
    """An API on it."""
    with (
        running("api", lone_url, s3_config, DF_SSE_HEARTBEAT_S=str(LONE_HEARTBEAT_S)) as service,
        consumer(service) as api,
    ):
        yield api


@pytest.fixture(scope="session")
def tuned(lone_url: str, s3_config: S3Config) -> Iterator[Api]:
    """Another, with settings far from their defaults."""
    with running("api", lone_url, s3_config, **TUNED) as service, consumer(service) as api:
        yield api


@pytest.fixture(scope="session")
def old_service(lone_url: str, s3_config: S3Config) -> Iterator[Service]:
    """A third, set up for clients of the old service; one of its settings can't be used."""
    with running("api", lone_url, s3_config, **OLD) as service:
        yield service


@pytest.fixture(scope="session")
def old(old_service: Service) -> Iterator[Api]:
    """What speaks to it."""
    with consumer(old_service) as api:
        yield api


class Scribe:
    """Writes histories into a log, as no runner would: to the letter, and at times of its own."""

    def __init__(self, store: Store) -> None:
        self.store = store

    async def write(self, history: History, *, after: int = 0, times: list[datetime] | None = None) -> str:
        """The events after a version, a minute apart unless told otherwise; answers the job's id."""
        decoded = history.events[after:]
        stamps = times or [minute(one.version) for one in decoded]
        events = tuple(
            codec.new_event(new_id(), ts, one.body, Meta(), one.private)
            for one, ts in zip(decoded, stamps, strict=True)
            if one.body is not None
        )
        append = Append(stream=history.job_id, category="job", expected=after, events=events)
        answers = await self.store.log.commit(Batch(appends=[append]))
        assert answers.streams[history.job_id].committed
        return str(history.job_id)


def minute(version: int) -> datetime:
    """When the scribe lets an event happen."""
    return NOON + timedelta(minutes=version)


def succeeded(*, count: int = 2, **more: Any) -> History:
    """A whole chained job."""
    history = History(count=count, **more)
    steps: tuple[StepName, StepName] = ("generate", "upscale")
    for step in steps:
        history.started(step).wrote(step, *range(count)).finished(step)
    return history.add(JobFinish(status="succeeded"))


@pytest.fixture
async def scribe(lone_url: str) -> AsyncIterator[Scribe]:
    """Writes into the database of `lone`."""
    store = Store(lone_url, listen=False)
    yield Scribe(store)
    await store.close()


def rejected(answer: httpx.Response, status: int, code: str) -> Any:
    """Expect an error in the one shape; answers its details."""
    assert answer.status_code == status, f"{answer.status_code} {answer.text}"
    assert answer.headers["Content-Type"] == "application/json"
    body = answer.json()
    assert body.keys() - {"details"} == {"code", "message", "correlation_id", "detail"}
    assert body["code"] == code
    assert body["message"] not in {"", code}
    assert body["correlation_id"] == answer.headers["X-Request-Id"]
    assert body["detail"] == {name: body[name] for name in ("code", "message", "details") if name in body}
    return body.get("details")


def invalid(answer: httpx.Response, field: str) -> str:
    """Expect a 422 that names a field; answers its reason."""
    details = rejected(answer, 422, "invalid_input")
    assert details["field"] == field, details
    assert details["reason"]
    return str(details["reason"])


def until(condition: Any, *, within: float = 20.0) -> Any:
    """Wait, in a test that isn't async, until a call answers something true."""

    async def probe() -> Any:
        return condition()

    return asyncio.run(eventually(probe, within=within))


class Frames:
    """The frames of a live stream, as they come."""

    def __init__(self, answer: httpx.Response) -> None:
        self.answer = answer
        self._text = answer.aiter_text()
        self._rest = ""

    async def next(self) -> str:
        """The next frame."""
        while "\n\n" not in self._rest:
            self._rest += await anext(self._text)
        frame, self._rest = self._rest.split("\n\n", 1)
        return frame

    async def rest(self) -> list[str]:
        """The frames to the stream's end, which must be a clean one."""
        self._rest += "".join([text async for text in self._text])
        return self._rest.split("\n\n")[:-1]

    async def until(self, mark: str) -> list[str]:
        """The frames up to the first that has a mark."""
        frames = [await self.next()]
        while mark not in frames[-1]:
            frames.append(await self.next())
        return frames


@asynccontextmanager
async def live(base: str, where: str) -> AsyncIterator[Frames]:
    """A stream that a client follows."""
    async with (
        httpx.AsyncClient(base_url=base, timeout=20, trust_env=False) as client,
        client.stream("GET", where) as answer,
    ):
        yield Frames(answer)
