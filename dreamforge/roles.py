"""The roles of a process, and how each starts and stops. `up` runs them all in one process.

    start   backends ─▶ schema ─▶ notifier ─▶ roles
    stop    streams end, items finish ─▶ what is left is handed back ─▶ committer ─▶ notifier ─▶ backends

The first Ctrl-C or SIGTERM begins the stop; more of them change nothing.
"""

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from typing import Any

import msgspec
import structlog
from starlette.types import ASGIApp

from api.admission import Admission, Limits
from api.app import build, build_health
from api.health import Health
from api.hosts import Hosts
from api.services import ApiConfig, Check, Services
from api.stream_tokens import StreamTokens
from artifacts.object_store import ObjectStore
from dreamforge import event_loop
from dreamforge.backends import configured, embedded, object_store, service_login, with_store
from dreamforge.cli.console import FAILED, UNAVAILABLE
from dreamforge.embedded import EmbeddedError
from dreamforge.engines import engine_process, fake_engine
from dreamforge.http_server import Server, is_loopback, listen_all, listen_nearby, url_of
from dreamforge.operations import anchoring
from dreamforge.schema import install
from dreamforge.settings import NotConfigured, Settings, SettingsError
from eventstore import schema
from eventstore.committer import Committer
from eventstore.database import Database, DatabaseWithDeadline, until_available
from eventstore.errors import EventStoreError
from eventstore.integrity.reader import AuditReader
from eventstore.log import Log
from eventstore.metrics import SUBSCRIPTION_FAILED, Backlog
from eventstore.notifier import Notifier
from eventstore.outbox import Outbox
from eventstore.subscription import Handler, Subscription
from eventstore.tailer import Tailer
from eventstore.write_probe import WriteProbe
from model_registry.catalogue import Models
from orchestrator import codec, step_command
from orchestrator.process_manager import Orchestrator
from orchestrator.quarantine_log import QUARANTINED, QUARANTINED_JOBS, Quarantine
from orchestrator.service import JobService
from orchestrator.step_kinds import STEP_KINDS
from projections import job_view
from projections.key_queries import Keys
from projections.projector import Projector
from projections.queries import Queries
from projections.rebuild import Rebuild, RebuildFailed
from runners.consumer import Consumer
from runners.engines.batching import BatchScheduler
from runners.faults import FaultPlan
from runners.item_renderer import ItemRenderer
from runners.metrics import WORKER_READY
from runners.selection import NO_MODELS, Selection
from runners.steps import RetryPolicy, StepRunner
from runners.threads import Threads

_HAND_BACK_S = 3.0
"""How long a runner that stops may take to tell the log that it hands its steps back."""

_log = structlog.get_logger(__name__)

Role = Callable[["Core", AsyncExitStack], Awaitable[None]]
"""Starts a role; what it pushes on the stack stops it."""


class StartupError(Exception):
    """Why a process can't start, or ended by itself. The message is for the person who started it."""


class NotReady(Exception):
    """Why a process is not ready, as /readyz reports it."""


class Core:
    """What all roles of a process share.

    stopping: set when the stop begins. checks: of /readyz, by name. url: where the API listens, if this process does.
    """

    def __init__(self, settings: Settings, database: Database, stopping: asyncio.Event) -> None:
        self.settings = settings
        self.database = database
        self.stopping = stopping
        self.actor = f"{socket.gethostname()}-{os.getpid()}"
        self.log = Log(database)
        self.notifier = Notifier(database)
        self.committer = Committer(self.log, self.notifier)
        self.url = ""
        self.checks: dict[str, Check] = {
            "database": lambda: schema.check(database),
            "committer": self.committer.task.check,
        }
        self.notices: dict[str, Check] = {}
        self.health = Health(
            self.checks, Backlog(database, {QUARANTINED_JOBS: QUARANTINED}), WriteProbe(database), notices=self.notices
        )
        self.tasks: list[asyncio.Task[None]] = []

    def store(self) -> ObjectStore:
        """The object store that the settings name."""
        return object_store(self.settings)

    def spawn(self, work: Awaitable[None], name: str) -> asyncio.Task[None]:
        """Run something for as long as the process; its failure stops the process."""

        async def guarded() -> None:
            try:
                await work
            except Exception:
                _log.exception("role broke, stopping", role=name)
                self.stopping.set()
                raise

        task = asyncio.create_task(guarded(), name=name)
        self.tasks.append(task)
        return task


def up(settings: Settings) -> int:
    """Run every role in one process, on embedded backends where the settings name none."""

    async def start(stack: AsyncExitStack) -> Settings:
        _expect_keys(settings)
        found = await embedded(settings, stack)
        async with _database(found, "dreamforge-install", bounded=False) as database:
            await install(database)
            return found if settings.db_url else await service_login(found, database)

    # The API last: it listens when everything that /readyz asks about is there, and is the first to stop.
    # The runner's own port as well: dashboards of the old service scrape it.
    health = _health("runner", settings.worker_metrics_port)
    return _main(start, [_orchestrator, _projector, health, _runner, _api])


def api(settings: Settings) -> int:
    """Run the HTTP API alone."""

    def check(given: Settings) -> Settings:
        _expect_keys(given)
        return with_store(given)

    return _main(_given(check, settings), [_api])


def orchestrator(settings: Settings) -> int:
    """Run the orchestrator alone."""
    health = _health("orchestrator", settings.orchestrator_metrics_port)
    return _main(_given(configured, settings), [health, _orchestrator])


def projector(settings: Settings) -> int:
    """Run the projector alone."""
    health = _health("projector", settings.projector_metrics_port)
    return _main(_given(configured, settings), [health, _projector])


def runner(settings: Settings) -> int:
    """Run a runner alone."""
    return _main(_given(with_store, settings), [_health("runner", settings.worker_metrics_port), _runner])


def install_schema(settings: Settings) -> int:
    """Install the database schema where it is missing."""

    async def run() -> None:
        async with _database(configured(settings), "dreamforge-install", bounded=False) as database:
            done = await install(database)
        print("schema installed" if done else "schema is up to date")  # noqa: T201  # the command's answer

    return _reported(run())


def _given(
    check: Callable[[Settings], Settings], settings: Settings
) -> Callable[[AsyncExitStack], Awaitable[Settings]]:
    async def start(_stack: AsyncExitStack) -> Settings:
        return check(settings)

    return start


@contextlib.asynccontextmanager
async def _database(settings: Settings, role: str, *, bounded: bool = True) -> AsyncIterator[Database]:
    database = Database(
        settings.db_url or "",
        listen_url=settings.db_listen_url,
        size=settings.db_connections,
        pooled=settings.db_pooler == "transaction",
        bounded=bounded,
        role=role,
    )
    try:
        yield database
    finally:
        await database.close()


def _main(start: Callable[[AsyncExitStack], Awaitable[Settings]], roles: Sequence[Role]) -> int:
    return _reported(_serve(start, roles))


def _reported(work: Coroutine[Any, Any, None]) -> int:
    """Run to the end; a reason not to start is told in a sentence."""
    try:
        event_loop.run(work)
    except (SettingsError, EmbeddedError, EventStoreError, StartupError) as error:
        _log.error("cannot start", reason=str(error))
        return UNAVAILABLE if isinstance(error, NotConfigured) else FAILED
    return 0


async def _serve(start: Callable[[AsyncExitStack], Awaitable[Settings]], roles: Sequence[Role]) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopping.set)
    async with AsyncExitStack() as stack:
        settings = await start(stack)
        if stopping.is_set():
            return
        database = await stack.enter_async_context(_database(settings, "dreamforge"))
        await _until(stopping, until_available("start", lambda: schema.check(database)))
        if stopping.is_set():
            return
        core = Core(settings, database, stopping)
        stack.push_async_callback(core.notifier.stop)
        stack.push_async_callback(core.committer.stop)
        core.notifier.start()
        core.checks["start"] = _starting  # a role's health is served before the role itself
        for role in roles:
            await role(core, stack)
        del core.checks["start"]
        _log.info("running", roles=[role.__name__.strip("_") for role in roles])
        if core.url:
            _log.info("open this page in a browser", page=f"{core.url}/")
        await stopping.wait()
        _log.info("stopping")
    _log.info("stopped")
    failed = [task.exception() for task in core.tasks if task.done() and not task.cancelled() and task.exception()]
    if failed:
        raise StartupError("a role broke; see the log above")


async def _starting() -> None:
    raise NotReady("the process is still starting")


async def _until(stopping: asyncio.Event, work: Awaitable[object]) -> None:
    """Await some work, unless the stop begins before it ends."""
    task = asyncio.ensure_future(work)
    stop = asyncio.create_task(stopping.wait())
    await asyncio.wait({task, stop}, return_when=asyncio.FIRST_COMPLETED)
    stop.cancel()
    if task.done():
        task.result()
    else:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _api(core: Core, stack: AsyncExitStack) -> None:
    settings = core.settings
    store = core.store()
    stack.push_async_callback(store.close)
    config = _api_config(settings)
    reads = DatabaseWithDeadline(core.database, config.patience_s)
    log = Log(reads)
    tailer = Tailer(log, core.notifier, poll_s=settings.sse_poll_ms / 1000)
    services = Services(
        log=log,
        reader=AuditReader(reads),
        committer=core.committer,
        jobs=JobService(core.log, core.committer, core.actor),
        tailer=tailer,
        queries=Queries(reads),
        models=Models(log),
        keys=Keys(log) if settings.require_keys else None,
        tokens=StreamTokens(reads),
        admission=Admission(reads, _limits(settings)),
        presign=store.presign_many,
        config=config,
        stopping=core.stopping,
    )
    try:
        bound = listen_all(settings.host, settings.port)
    except OSError as error:
        address = f"{settings.host}:{settings.port}"
        raise StartupError(f"can't listen on {address} ({error}); choose another with --port or DF_PORT") from error
    core.checks["tailer"] = tailer.task.check
    health = msgspec.structs.replace(core.health, needs_writes=False)
    core.url = _serve_http(core, stack, build(services, health), bound, "api")
    stack.push_async_callback(tailer.stop)
    _log.info("listening", url=core.url)


def _expect_keys(settings: Settings) -> None:
    """Refuse to serve strangers by mistake."""
    if settings.require_keys or settings.allow_anonymous or is_loopback(settings.host):
        return
    raise StartupError(
        f"others could reach {settings.host} and do all that the API can: set DF_REQUIRE_KEYS=1 "
        "(see `dreamforge keys`), or DF_ALLOW_ANONYMOUS=1 if that is meant"
    )


def _limits(settings: Settings) -> Limits:
    return Limits(
        queued=settings.max_queued_jobs, tenant_queued=settings.tenant_max_queued_jobs, rate=settings.tenant_rate
    )


def _health(role: str, port: int) -> Role:
    """Serves /healthz, /readyz and /metrics on a port of the role's own. Before the role, so that it stops after it."""

    async def health(core: Core, stack: AsyncExitStack) -> None:
        host = core.settings.metrics_host
        try:
            bound = listen_nearby(host, port)
        except OSError as error:
            raise StartupError(f"can't serve health on {host}:{port} ({error}); see DF_METRICS_HOST") from error
        url = _serve_http(core, stack, build_health(core.health, _hosts(core.settings)), bound, "health")
        _log.info("serving health", role=role, url=url)

    return health


def _serve_http(core: Core, stack: AsyncExitStack, app: ASGIApp, bound: list[socket.socket], name: str) -> str:
    """Serve an application on sockets that listen; answers where."""
    server = Server(app)
    serving = core.spawn(server.serve(sockets=bound), name)

    async def stop() -> None:
        server.should_exit = True
        await asyncio.wait({serving}, timeout=core.settings.shutdown_grace_s)

    stack.push_async_callback(stop)
    return url_of(bound[0])


def _api_config(settings: Settings) -> ApiConfig:
    return ApiConfig(
        create_status=settings.create_status,
        eager_s=settings.eager_timeout_s if settings.eager else None,
        max_body_bytes=settings.max_body_bytes,
        max_pixels=settings.max_pixels,
        presign_expires_s=settings.presign_expires_s,
        logs_tail_default=min(settings.logs_tail_default, settings.logs_tail_max),
        logs_tail_max=settings.logs_tail_max,
        cors_origins=settings.cors_origins,
        hosts=_hosts(settings),
        max_streams=settings.max_streams,
        stream_max_s=settings.stream_max_s,
        sse_heartbeat_s=settings.sse_heartbeat_s,
        weights=settings.progress_weights,
    )


def _hosts(settings: Settings) -> Hosts:
    """Who has a key is no page by accident; without keys, only names that the operator knows are served."""
    if settings.allowed_hosts is None and settings.require_keys:
        return Hosts()
    return Hosts({*(settings.allowed_hosts or ()), settings.host, settings.metrics_host})


async def _orchestrator(core: Core, stack: AsyncExitStack) -> None:
    settings = core.settings
    key = anchoring.signing_key(settings)
    _subscribe(core, stack, Orchestrator(core.log, core.committer, core.actor))
    quarantine = Quarantine(core.log, core.actor)
    core.notices["quarantine"] = quarantine.check
    _stop_with(stack, core.spawn(quarantine.run(), "quarantine"))
    if key is None or settings.anchor_every_s is None:
        return
    store = None if settings.s3_endpoint is None else core.store()
    if store is not None:
        stack.push_async_callback(store.close)
    signing = anchoring.anchor_regularly(core.log, store, key, core.actor, settings.anchor_every_s)
    _stop_with(stack, core.spawn(signing, "anchors"))


async def _projector(core: Core, stack: AsyncExitStack) -> None:
    _subscribe(core, stack, Projector(core.database))
    _stop_with(stack, core.spawn(_rebuild_outdated(core.settings), "rebuild"))


async def _rebuild_outdated(settings: Settings) -> None:
    """If this release keeps other things of a job than what serves, build its read model, and let it take over."""
    async with _database(settings, "dreamforge-rebuild", bounded=False) as database:
        rebuild = Rebuild(database)
        serving = (await until_available("rebuild", rebuild.state)).views_version
        if serving > job_view.VERSION:
            _log.warning("a later release keeps the read model: this projector stands by", views_version=serving)
        if serving >= job_view.VERSION:
            return
        _log.info("rebuilding the read model", views_version=job_view.VERSION, serving=serving)
        try:
            lag = await until_available("rebuild", rebuild.run)
        except RebuildFailed as error:
            _log.warning("the read model was not rebuilt; what serves serves on", reason=str(error))
        else:
            _log.info("the read model was rebuilt", lag_s=round(lag, 3))


def _subscribe(core: Core, stack: AsyncExitStack, handler: Handler) -> None:
    subscription = Subscription(core.log, core.notifier, handler, codec.is_known, poll_s=core.settings.poll_s)
    task = core.spawn(subscription.run(), handler.name)

    async def check() -> None:
        for cursor in subscription.cursors.values():
            if cursor.failure is not None:
                raise NotReady(f"partition {cursor.partition} is stalled: {cursor.failure}")

    core.checks[handler.name] = check
    SUBSCRIPTION_FAILED.labels(handler.name).set_function(
        lambda: float(any(cursor.failure is not None for cursor in subscription.cursors.values()))
    )
    _stop_with(stack, task)


def _stop_with(stack: AsyncExitStack, task: asyncio.Task[None]) -> None:
    """Cancel a task, and await its end, when the stack is left."""

    async def stop() -> None:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    stack.push_async_callback(stop)


async def _runner(core: Core, stack: AsyncExitStack) -> None:
    settings = core.settings
    store = core.store()
    stack.push_async_callback(store.close)
    core.checks["object_store"] = store.check_ready
    await _bucket(core, store)
    item_renderer = _item_renderer(core)
    if not settings.fake_runner and settings.model is None and await _no_generator(core):
        _log.warning("no model is configured: the fake engine paints; set DF_FAKE_RUNNER=1 to say that it should")
    stack.push_async_callback(item_renderer.stop)
    steps = StepRunner(
        JobService(core.log, core.committer, core.actor),
        store,
        item_renderer,
        retry=RetryPolicy(
            max_attempts=settings.max_attempts,
            first_delay_s=settings.retry_base_s,
            longest_delay_s=settings.retry_max_s,
            timeout_s=settings.step_timeout_s,
            outage_s=settings.store_patience_s,
        ),
        name=core.actor,
    )
    # What was begun is finished before anything new is begun.
    outbox = Outbox(core.database, list(reversed(STEP_KINDS)), step_command.decode)
    consumer = Consumer(outbox, core.notifier, steps.run, slots=settings.slots, lease_s=settings.lease_s)
    running = core.spawn(consumer.run(), "runner")
    core.checks["heartbeat"] = consumer.heartbeat.check
    WORKER_READY.set_function(lambda: float(consumer.ready))

    async def stop() -> None:
        steps.stop()
        consumer.stop()
        if not (await asyncio.wait({running}, timeout=settings.shutdown_grace_s))[0]:
            steps.give_up()
            await asyncio.wait({running}, timeout=_HAND_BACK_S)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    stack.push_async_callback(stop)


async def _no_generator(core: Core) -> bool:
    models = await until_available("models", Models(core.log).all)
    return not any(model.available and model.kind == "generator" for model in models)


def _item_renderer(core: Core) -> ItemRenderer:
    settings = core.settings
    return ItemRenderer(
        fake_engine(settings, FaultPlan.parse(settings.fake_fail or "")),
        Threads(),
        Selection(Models(core.log), default=settings.model) if not settings.fake_runner else NO_MODELS,
        BatchScheduler(engine_process(settings), batch_max=settings.batch_max),
    )


async def _bucket(core: Core, store: ObjectStore) -> None:
    """Make the bucket; a store that is away must not keep the runner from starting, puts are tried again."""
    try:
        await store.ensure_bucket()
    except Exception as error:  # noqa: BLE001  # whatever keeps it away is told, and shows in /readyz
        _log.warning("can't reach the bucket yet", bucket=core.settings.s3_bucket, error=str(error))
