"""A subscriber that does not read."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import httpx

from api.admission import AdmissionControl, AdmissionLimits
from api.app import build_api_app
from api.health import HealthSources
from api.services import ApiConfig, Services
from api.stream_tokens import StreamTokens
from dreamforge.http_server import HttpServer, listen_on, url_of_socket
from eventstore.integrity.reader import AuditReader
from eventstore.metrics import BacklogGauges
from eventstore.tailer import Tailer
from eventstore.write_probe import WriteProbe
from model_registry.catalogue import ModelCatalogue
from orchestrator.events import JobFinish, StepRetry
from orchestrator.service import JobService
from projections.queries import JobQueries
from tests.http.conftest import Scribe
from tests.http.test_stream import ids, path
from tests.kit import Api, History, Metrics, Store, eventually, parse_sse


@asynccontextmanager
async def services_on(url: str, config: ApiConfig | None = None) -> AsyncIterator[Services]:
    """What the handlers of an API use, on a database."""
    store = Store(url)
    services = Services(
        log=store.log,
        reader=AuditReader(store.database),
        committer=store.committer,
        jobs=JobService(store.log, store.committer, "test"),
        tailer=Tailer(store.log, store.notifier),
        queries=JobQueries(store.database),
        models=ModelCatalogue(store.log),
        keys=None,
        tokens=StreamTokens(store.database),
        admission=AdmissionControl(store.database, AdmissionLimits()),
        presign=cast("Any", None),
        read_object=cast("Any", None),
        config=config or ApiConfig(),
        stopping=asyncio.Event(),
    )
    try:
        yield services
    finally:
        services.stopping.set()
        await services.tailer.stop()
        await store.close()


@asynccontextmanager
async def short_deadline(url: str) -> AsyncIterator[str]:
    """An API that cuts off who doesn't read for half a second; there is no setting for it."""
    async with services_on(url, ApiConfig(slow_client_s=0.5)) as services:
        database = services.log.database
        bound = listen_on("127.0.0.1", 0)
        server = HttpServer(build_api_app(services, HealthSources({}, BacklogGauges(database), WriteProbe(database))))
        serving = asyncio.create_task(server.serve(sockets=[bound]))
        try:
            yield url_of_socket(bound)
        finally:
            services.stopping.set()
            server.should_exit = True
            await serving


async def test_who_does_not_read_is_cut_off_and_loses_nothing(lone: Api, lone_url: str, scribe: Scribe) -> None:
    """Given more than the sockets hold and a client that doesn't read, then its stream ends, and it resumes."""
    history = History(scale=None)
    given: dict[str, Any] = {"step_id": history.step_id("generate"), "step_name": "generate", "reason": "failure"}
    given |= {"error_code": "oom", "error_message": "x" * 16_000, "delay_s": 0}
    for attempt in range(1, 401):
        history.started("generate", attempt).add(StepRetry(**given, attempt=attempt))
    job_id = await scribe.write(
        history.started("generate", 401).finished("generate", "failed", 401).add(JobFinish(status="failed"))
    )
    async with short_deadline(lone_url) as base:
        where = httpx.URL(base)
        with socket.socket() as lazy:
            lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            lazy.connect((where.host, where.port))
            lazy.sendall(f"GET {path(job_id)} HTTP/1.0\r\n\r\n".encode())
            await eventually(lambda: clients(base, 1))
            await eventually(lambda: clients(base, 0))
            raw = await asyncio.to_thread(drained, lazy)
    whole = raw.decode().split("\r\n\r\n", 1)[1].rpartition("\n\n")[0]
    seen = ids(parse_sse(whole))
    assert 0 < len(seen) < len(history.events), "it was cut off"
    rest = ids(lone.stream(job_id, last_event_id=str(seen[-1])))
    assert seen + rest == list(range(1, len(history.events) + 1))


async def clients(base: str, count: int) -> bool:
    """Are so many subscribed to jobs?"""
    metrics = await asyncio.to_thread(Metrics, base)
    return metrics.value("df_sse_clients", stream="job") == count


def drained(connection: socket.socket) -> bytes:
    """What is left to be read."""
    connection.settimeout(10)
    parts = []
    try:
        while part := connection.recv(1 << 20):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)
