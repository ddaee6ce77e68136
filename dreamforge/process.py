"""A process: what its roles share, and how it starts and stops.

    start   backends ─▶ schema ─▶ notifier ─▶ roles
    stop    streams end, items finish ─▶ what is left is handed back ─▶ committer ─▶ notifier ─▶ backends

The first Ctrl-C or SIGTERM begins the stop; more of them change nothing.
"""

import asyncio
import contextlib
import gc
import os
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from typing import Any, TypeVar

import structlog
import uvloop
from starlette.types import ASGIApp

from api.app import build_health_app
from api.health import HealthSources
from api.hosts import AllowedHosts
from api.services import HealthCheck
from artifacts.object_store import ObjectStore
from dreamforge.backends import create_object_store
from dreamforge.cli.console import FAILED, UNAVAILABLE
from dreamforge.embedded import EmbeddedError
from dreamforge.http_server import HttpServer, listen_or_use_free_port, url_of_socket
from dreamforge.loop_monitor import monitor_event_loop
from dreamforge.settings import NotConfigured, Settings, SettingsError
from eventstore import schema
from eventstore.committer import Committer
from eventstore.database import Database, retry_until_available
from eventstore.errors import EventStoreError
from eventstore.log import Log
from eventstore.metrics import BacklogGauges
from eventstore.notifier import Notifier
from eventstore.tailer import Tailer
from eventstore.write_probe import WriteProbe
from orchestrator.quarantine_log import QUARANTINED_JOBS, QUARANTINED_JOBS_COUNT_SQL

_log = structlog.get_logger(__name__)
T = TypeVar("T")

Role = Callable[["ProcessContext", AsyncExitStack], Awaitable[None]]
"""Starts a role; what it pushes on the stack stops it."""


class StartupError(Exception):
    """Why a process can't start, or ended by itself. The message is for the person who started it."""


class NotReady(Exception):
    """Why a process is not ready, as /readyz reports it."""


class ProcessContext:
    """What all roles of a process share.

    stopping: set when the stop begins. checks: of /readyz, by name. url: where the API listens, if this process does.
    tailer: what reads the log for all roles, if several of them follow it.
    """

    def __init__(self, settings: Settings, database: Database, stopping: asyncio.Event) -> None:
        self.settings = settings
        self.database = database
        self.stopping = stopping
        self.actor = f"{socket.gethostname()}-{os.getpid()}"
        self.log = Log(database)
        self.notifier = Notifier(database)
        self.committer = Committer(self.log, self.notifier)
        self.tailer: Tailer | None = None
        self.url = ""
        self.checks: dict[str, HealthCheck] = {
            "database": lambda: schema.check_release(database),
            "committer": self.committer.task.check,
        }
        self.notices: dict[str, HealthCheck] = {}
        self.health = HealthSources(
            self.checks,
            BacklogGauges(database, {QUARANTINED_JOBS: QUARANTINED_JOBS_COUNT_SQL}),
            WriteProbe(database),
            notices=self.notices,
        )
        self.tasks: list[asyncio.Task[None]] = []

    def create_store(self) -> ObjectStore:
        """The object store that the settings name."""
        return create_object_store(self.settings)

    def spawn(self, awaitable: Awaitable[None], name: str) -> asyncio.Task[None]:
        """Run something for as long as the process; its failure stops the process."""

        async def guarded() -> None:
            try:
                await awaitable
            except Exception:
                _log.exception("role broke, stopping", role=name)
                self.stopping.set()
                raise

        task = asyncio.create_task(guarded(), name=name)
        self.tasks.append(task)
        return task


@contextlib.asynccontextmanager
async def open_database(settings: Settings, role: str, *, bounded: bool = True) -> AsyncIterator[Database]:
    """The database of a role, which is closed at the end of the block."""
    database = Database(
        settings.db_url or "",
        listen_url=settings.db_listen_url,
        max_connections=settings.db_connections,
        pooled=settings.db_pooler == "transaction",
        time_limited=bounded,
        application_name=role,
    )
    try:
        yield database
    finally:
        await database.close()


def run_on_uvloop(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to completion on uvloop."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(coroutine)


def run_roles(prepare_settings: Callable[[AsyncExitStack], Awaitable[Settings]], roles: Sequence[Role]) -> int:
    """Run some roles until the process is stopped. prepare_settings: starts what they need. Returns the exit code."""
    return run_and_report_errors(_serve_until_stopped(prepare_settings, roles))


def run_and_report_errors(coroutine: Coroutine[Any, Any, None]) -> int:
    """Run to the end; a reason not to start is told in a sentence."""
    try:
        run_on_uvloop(coroutine)
    except (SettingsError, EmbeddedError, EventStoreError, StartupError) as error:
        _log.error("cannot start", reason=str(error))
        return UNAVAILABLE if isinstance(error, NotConfigured) else FAILED
    return 0


async def _serve_until_stopped(
    prepare_settings: Callable[[AsyncExitStack], Awaitable[Settings]], roles: Sequence[Role]
) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopping.set)
    async with AsyncExitStack() as stack:
        settings = await prepare_settings(stack)
        if stopping.is_set():
            return
        database = await stack.enter_async_context(open_database(settings, "dreamforge"))
        await _await_unless_stopping(stopping, retry_until_available("start", lambda: schema.check_release(database)))
        if stopping.is_set():
            return
        context = ProcessContext(settings, database, stopping)
        stack.push_async_callback(context.notifier.stop)
        stack.push_async_callback(context.committer.stop)
        context.notifier.start()
        cancel_on_exit(stack, context.spawn(monitor_event_loop(), "loop monitor"))
        context.checks["start"] = _fail_while_starting  # a role's health is served before the role itself
        for role in roles:
            await role(context, stack)
        del context.checks["start"]
        # What every process keeps for life is not looked through again: a whole collection stopped all work for 100 ms.
        gc.collect()
        gc.freeze()
        _log.info("running", roles=[role.__name__.strip("_") for role in roles])
        if context.url:
            _log.info("open this page in a browser", page=f"{context.url}/")
        await stopping.wait()
        _log.info("stopping")
    _log.info("stopped")
    failed = [task.exception() for task in context.tasks if task.done() and not task.cancelled() and task.exception()]
    if failed:
        raise StartupError("a role broke; see the log above")


async def _fail_while_starting() -> None:
    raise NotReady("the process is still starting")


async def _await_unless_stopping(stopping: asyncio.Event, awaitable: Awaitable[object]) -> None:
    """Await some work, unless the stop begins before it ends."""
    task = asyncio.ensure_future(awaitable)
    stop = asyncio.create_task(stopping.wait())
    await asyncio.wait({task, stop}, return_when=asyncio.FIRST_COMPLETED)
    stop.cancel()
    if task.done():
        task.result()
    else:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def health_server(role: str, port: int) -> Role:
    """Serves /healthz, /readyz and /metrics on a port of the role's own. Before the role, so that it stops after it."""

    async def health(context: ProcessContext, stack: AsyncExitStack) -> None:
        host = context.settings.metrics_host
        try:
            bound = listen_or_use_free_port(host, port)
        except OSError as error:
            raise StartupError(f"can't serve health on {host}:{port} ({error}); see DF_METRICS_HOST") from error
        url = serve_http(
            context, stack, build_health_app(context.health, served_hosts(context.settings)), bound, "health"
        )
        _log.info("serving health", role=role, url=url)

    return health


def serve_http(
    context: ProcessContext, stack: AsyncExitStack, app: ASGIApp, sockets: list[socket.socket], name: str
) -> str:
    """Serve an application on sockets that listen; answers where."""
    server = HttpServer(app)
    serving = context.spawn(server.serve(sockets=sockets), name)

    async def stop() -> None:
        server.should_exit = True
        await asyncio.wait({serving}, timeout=context.settings.shutdown_grace_s)

    stack.push_async_callback(stop)
    return url_of_socket(sockets[0])


def served_hosts(settings: Settings) -> AllowedHosts:
    """Who has a key is no page by accident; without keys, only names that the operator knows are served."""
    if settings.allowed_hosts is None and settings.require_keys:
        return AllowedHosts()
    return AllowedHosts({*(settings.allowed_hosts or ()), settings.host, settings.metrics_host})


def cancel_on_exit(stack: AsyncExitStack, task: asyncio.Task[None]) -> None:
    """Cancel a task, and await its end, when the stack is left."""

    async def stop() -> None:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    stack.push_async_callback(stop)
