"""The roles of a process, and how each starts and stops. `up` runs them all in one process.

    start   backends ─▶ schema ─▶ doorbell ─▶ roles
    stop    streams end, items finish ─▶ what is left is handed back ─▶ committer ─▶ doorbell ─▶ backends

The first Ctrl-C or SIGTERM begins the stop; more of them change nothing.
"""

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from typing import Any

import structlog
import uvicorn

from api.app import build
from api.services import ApiConfig, Check, Services
from dreamforge.backends import configured, embedded, with_store
from dreamforge.embedded import EmbeddedError
from dreamforge.settings import Settings, SettingsError
from eventstore import schema
from eventstore.committer import Committer
from eventstore.database import Database, until_available
from eventstore.doorbell import Doorbell
from eventstore.errors import EventStoreError
from eventstore.log import Log
from eventstore.outbox import Outbox
from eventstore.subscription import Handler, Subscription
from eventstore.tailer import Tailer
from orchestrator.loop import Orchestrator
from orchestrator.transact import Jobs
from projections.progress import Weights
from projections.projector import Projector
from projections.queries import Queries
from runners.consumer import Consumer
from runners.engines.fake import FakeEngine
from runners.faults import FaultPlan
from runners.objects import ObjectStore, S3Config
from runners.rendering import Renderer
from runners.steps import RetryPolicy, StepRunner
from runners.upscalers.image import ImageUpscaler

_log = structlog.get_logger(__name__)

Role = Callable[["Core", AsyncExitStack], Awaitable[None]]
"""Starts a role; what it pushes on the stack stops it."""


class CannotStart(Exception):
    """Why a process can't start, for the person who started it."""


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
        self.doorbell = Doorbell(database)
        self.committer = Committer(self.log, self.doorbell)
        self.url = ""
        self.checks: dict[str, Check] = {"database": lambda: schema.check(database)}
        self.tasks: list[asyncio.Task[None]] = []

    def store(self) -> ObjectStore:
        """The object store that the settings name."""
        found = self.settings
        return ObjectStore(
            S3Config(
                endpoint=found.s3_endpoint,
                access_key=found.s3_access_key or "",
                secret_key=found.s3_secret_key or "",
                bucket=found.s3_bucket,
                region=found.s3_region,
                public_endpoint=found.s3_public_endpoint,
            )
        )

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
        found = await embedded(settings, stack)
        async with _database(found, "dreamforge-install") as database:
            await schema.install(database)
        return found

    # The API last: it listens when everything that /readyz asks about is there, and is the first to stop.
    return _main(start, [_orchestrator, _projector, _runner, _api])


def api(settings: Settings) -> int:
    """Run the HTTP API alone."""
    return _main(_given(with_store, settings), [_api])


def orchestrator(settings: Settings) -> int:
    """Run the orchestrator alone."""
    return _main(_given(configured, settings), [_orchestrator])


def projector(settings: Settings) -> int:
    """Run the projector alone."""
    return _main(_given(configured, settings), [_projector])


def runner(settings: Settings) -> int:
    """Run a runner alone."""
    return _main(_given(with_store, settings), [_runner])


def install_schema(settings: Settings) -> int:
    """Install the database schema where it is missing."""

    async def install() -> None:
        async with _database(configured(settings), "dreamforge-install") as database:
            done = await schema.install(database)
        print("schema installed" if done else "schema is up to date")  # noqa: T201  # the command's answer

    return _reported(install())


def _given(
    check: Callable[[Settings], Settings], settings: Settings
) -> Callable[[AsyncExitStack], Awaitable[Settings]]:
    async def start(_stack: AsyncExitStack) -> Settings:
        return check(settings)

    return start


@contextlib.asynccontextmanager
async def _database(settings: Settings, role: str) -> AsyncIterator[Database]:
    database = Database(
        settings.db_url or "",
        listen_url=settings.db_listen_url,
        pooled=settings.db_pooler == "transaction",
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
        asyncio.run(work)
    except (SettingsError, EmbeddedError, EventStoreError, CannotStart) as error:
        _log.error("cannot start", reason=str(error))
        return 1
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
        stack.push_async_callback(core.doorbell.stop)
        stack.push_async_callback(core.committer.stop)
        core.doorbell.start()
        for role in roles:
            await role(core, stack)
        _log.info("running", roles=[role.__name__.strip("_") for role in roles])
        await stopping.wait()
        _log.info("stopping")
    _log.info("stopped")
    failed = [task.exception() for task in core.tasks if task.done() and not task.cancelled() and task.exception()]
    if failed:
        raise CannotStart("a role broke; see the log above")


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


class _Server(uvicorn.Server):
    """Leaves signals to the process, which stops all its roles in order."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def _api(core: Core, stack: AsyncExitStack) -> None:
    settings = core.settings
    store = core.store()
    stack.push_async_callback(store.close)
    tailer = Tailer(core.log, core.doorbell, poll_s=settings.sse_poll_ms / 1000)
    services = Services(
        log=core.log,
        committer=core.committer,
        tailer=tailer,
        queries=Queries(core.database),
        presign=store.presign_many,
        checks=core.checks,
        config=_api_config(settings),
        stopping=core.stopping,
    )
    bound = _bound(settings.host, settings.port)
    config = uvicorn.Config(
        build(services),
        log_config=None,
        access_log=False,
        lifespan="off",
        server_header=False,
        timeout_graceful_shutdown=3,
    )
    server = _Server(config)
    serving = core.spawn(server.serve(sockets=[bound]), "api")

    async def stop() -> None:
        await tailer.stop()
        server.should_exit = True
        await asyncio.wait({serving}, timeout=settings.shutdown_grace_s)

    stack.push_async_callback(stop)
    host, port = bound.getsockname()[:2]
    core.url = f"http://{host}:{port}"
    _log.info("listening", url=core.url)


def _api_config(settings: Settings) -> ApiConfig:
    given = settings.progress_weights
    weights: Weights = {"generate": given["generate"], "upscale": given["upscale"]}
    return ApiConfig(
        create_status=settings.create_status,
        max_body_bytes=settings.max_body_bytes,
        max_pixels=settings.max_pixels,
        presign_expires_s=settings.presign_expires_s,
        sse_heartbeat_s=settings.sse_heartbeat_s,
        weights=weights,
    )


def _bound(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
        bound.listen(2048)  # from here on connections wait for the server rather than fail
    except OSError as error:
        bound.close()
        raise CannotStart(f"can't listen on {host}:{port} ({error}); choose another with --port or DF_PORT") from error
    return bound


async def _orchestrator(core: Core, stack: AsyncExitStack) -> None:
    _subscribe(core, stack, Orchestrator(core.log, core.committer, core.actor))


async def _projector(core: Core, stack: AsyncExitStack) -> None:
    _subscribe(core, stack, Projector(core.database))


def _subscribe(core: Core, stack: AsyncExitStack, handler: Handler) -> None:
    subscription = Subscription(core.log, core.doorbell, handler, poll_s=core.settings.poll_s)
    task = core.spawn(subscription.run(), handler.name)

    async def check() -> None:
        for lane in subscription.lanes.values():
            if lane.failure is not None:
                raise CannotStart(f"partition {lane.partition} stands still: {lane.failure}")

    async def stop() -> None:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    core.checks[handler.name] = check
    stack.push_async_callback(stop)


async def _runner(core: Core, stack: AsyncExitStack) -> None:
    settings = core.settings
    if not settings.fake_runner:
        _log.warning("no model is configured: the fake engine paints; set DF_FAKE_RUNNER=1 to say that it should")
    store = core.store()
    stack.push_async_callback(store.close)
    await _bucket(core, store)
    executor = ThreadPoolExecutor(settings.runner_slots, thread_name_prefix="render")
    stack.callback(executor.shutdown, wait=False, cancel_futures=True)
    steps = StepRunner(
        Jobs(core.log, core.committer, core.actor),
        store,
        Renderer(
            FakeEngine(),
            {"image": ImageUpscaler()},
            faults=FaultPlan.parse(settings.fake_fail or ""),
            max_pixels=settings.max_pixels,
        ),
        executor=executor,
        retry=RetryPolicy(
            max_attempts=settings.max_attempts,
            first_delay_s=settings.retry_base_s,
            longest_delay_s=settings.retry_max_s,
        ),
        name=core.actor,
    )
    # What was begun is finished before anything new is begun.
    outbox = Outbox(core.database, ["upscale", "generate"])
    consumer = Consumer(outbox, core.doorbell, steps.run, slots=settings.runner_slots, lease_s=settings.lease_s)
    running = core.spawn(consumer.run(), "runner")

    async def stop() -> None:
        steps.stop()
        consumer.stop()
        await asyncio.wait({running}, timeout=settings.shutdown_grace_s)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    core.checks["object_store"] = store.ready
    stack.push_async_callback(stop)


async def _bucket(core: Core, store: ObjectStore) -> None:
    """Make the bucket; a store that is away must not keep the runner from starting, puts are tried again."""
    try:
        await store.ensure_bucket()
    except Exception as error:  # noqa: BLE001  # whatever keeps it away is told, and shows in /readyz
        _log.warning("can't reach the bucket yet", bucket=core.settings.s3_bucket, error=str(error))
