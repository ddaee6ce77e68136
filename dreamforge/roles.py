"""The roles of a process: what each one starts. `up` runs them all in one process (see `process`)."""

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack

import msgspec
import structlog

from api.admission import AdmissionControl, AdmissionLimits
from api.app import build_api_app
from api.services import ApiConfig, Services
from api.stream_tokens import StreamTokens
from artifacts.object_store import ObjectStore
from dreamforge.backends import require_db_and_s3, require_db_url, start_embedded_services, with_service_login
from dreamforge.engines import create_engine_process, create_fake_renderer
from dreamforge.http_server import is_loopback, open_listening_sockets
from dreamforge.operations import anchoring
from dreamforge.process import (
    NotReady,
    ProcessContext,
    Role,
    StartupError,
    cancel_on_exit,
    health_server,
    open_database,
    run_and_report_errors,
    run_roles,
    serve_http,
    served_hosts,
)
from dreamforge.schema import install
from dreamforge.settings import Settings
from eventstore.database import DatabaseWithDeadline, retry_until_available
from eventstore.integrity.reader import AuditReader
from eventstore.log import Log
from eventstore.metrics import SUBSCRIPTION_FAILED
from eventstore.notifier import BUSY_GATHER_S
from eventstore.outbox import Outbox
from eventstore.subscription import Handler, Subscription
from eventstore.tailer import Tailer
from model_registry.catalogue import ModelCatalogue
from orchestrator import codec, step_command
from orchestrator.process_manager import Orchestrator
from orchestrator.quarantine_log import Quarantine
from orchestrator.service import JobService
from orchestrator.step_kinds import STEP_KINDS
from projections import job_view
from projections.key_queries import ApiKeys
from projections.projector import Projector
from projections.queries import JobQueries
from projections.rebuild import Rebuild, RebuildFailed
from runners.consumer import Consumer
from runners.engines.batching import BatchScheduler
from runners.faults import FaultPlan
from runners.item_renderer import ItemRenderer
from runners.metrics import WORKER_READY
from runners.selection import NO_MODELS, ModelChoices
from runners.steps import RetryPolicy, StepRunner
from runners.threads import UnboundedThreadExecutor

_PROJECTOR_GATHER_S = 0.05
"""How long the projector gathers events. It alone may: reads of a job are fresh without it."""

_HAND_BACK_TIMEOUT_S = 3.0
"""How long a runner that stops may take to tell the log that it hands its steps back."""

_log = structlog.get_logger(__name__)


def up(settings: Settings) -> int:
    """Run every role in one process, on embedded backends where the settings name none."""

    async def start(stack: AsyncExitStack) -> Settings:
        _expect_keys_if_public(settings)
        found = await start_embedded_services(settings, stack)
        async with open_database(found, "dreamforge-install", bounded=False) as database:
            await install(database)
            return found if settings.db_url else await with_service_login(found, database)

    # The API last: it listens when everything that /readyz asks about is there, and is the first to stop.
    # The runner's own port as well: dashboards of the old service scrape it.
    health = health_server("runner", settings.worker_metrics_port)
    return run_roles(start, [_shared_tailer, _orchestrator, _projector, health, _runner, _api])


def api(settings: Settings) -> int:
    """Run the HTTP API alone."""

    def check(given: Settings) -> Settings:
        _expect_keys_if_public(given)
        return require_db_and_s3(given)

    return _run_alone(settings, check, _api)


def orchestrator(settings: Settings) -> int:
    """Run the orchestrator alone."""
    health = health_server("orchestrator", settings.orchestrator_metrics_port)
    return _run_alone(settings, require_db_url, health, _orchestrator)


def projector(settings: Settings) -> int:
    """Run the projector alone."""
    health = health_server("projector", settings.projector_metrics_port)
    return _run_alone(settings, require_db_url, health, _projector)


def runner(settings: Settings) -> int:
    """Run a runner alone."""
    return _run_alone(settings, require_db_and_s3, health_server("runner", settings.worker_metrics_port), _runner)


def install_schema(settings: Settings) -> int:
    """Install the database schema where it is missing."""

    async def run() -> None:
        async with open_database(require_db_url(settings), "dreamforge-install", bounded=False) as database:
            done = await install(database)
        print("schema installed" if done else "schema is up to date")  # noqa: T201  # the command's answer

    return run_and_report_errors(run())


def _run_alone(settings: Settings, check_settings: Callable[[Settings], Settings], *roles: Role) -> int:
    """Run roles on the services that the settings name. check_settings: raises `NotConfigured` if one is missing."""

    async def start(_stack: AsyncExitStack) -> Settings:
        return check_settings(settings)

    return run_roles(start, roles)


async def _api(context: ProcessContext, stack: AsyncExitStack) -> None:
    settings = context.settings
    store = context.create_store()
    stack.push_async_callback(store.close)
    config = _api_config(settings)
    reads = DatabaseWithDeadline(context.database, config.patience_s)
    log = Log(reads)
    tailer = context.tailer or _start_tailer(context, stack)
    limits = AdmissionLimits(
        queued=settings.max_queued_jobs, tenant_queued=settings.tenant_max_queued_jobs, rate=settings.tenant_rate
    )
    services = Services(
        log=log,
        reader=AuditReader(reads),
        committer=context.committer,
        jobs=JobService(context.log, context.committer, context.actor),
        tailer=tailer,
        queries=JobQueries(reads),
        models=ModelCatalogue(log),
        keys=ApiKeys(log) if settings.require_keys else None,
        tokens=StreamTokens(reads),
        admission=AdmissionControl(reads, limits),
        presign=store.presign_many,
        read_object=store.get_verified,
        config=config,
        stopping=context.stopping,
    )
    try:
        bound = open_listening_sockets(settings.host, settings.port)
    except OSError as error:
        address = f"{settings.host}:{settings.port}"
        raise StartupError(f"can't listen on {address} ({error}); choose another with --port or DF_PORT") from error
    health = msgspec.structs.replace(context.health, needs_writes=False)
    context.url = serve_http(context, stack, build_api_app(services, health), bound, "api")
    stack.callback(tailer.wake_followers)  # which end their streams
    _log.info("listening", url=context.url)


async def _shared_tailer(context: ProcessContext, stack: AsyncExitStack) -> None:
    """Reads the log once for all roles of the process that follow it."""
    context.tailer = _start_tailer(context, stack, gather_s=BUSY_GATHER_S)


def _start_tailer(context: ProcessContext, stack: AsyncExitStack, gather_s: float = 0.0) -> Tailer:
    """A tailer, which reads while somebody follows it."""
    log = Log(DatabaseWithDeadline(context.database, _api_config(context.settings).patience_s))
    tailer = Tailer(log, context.notifier, poll_s=context.settings.sse_poll_ms / 1000, gather_s=gather_s)
    stack.push_async_callback(tailer.stop)
    context.checks["tailer"] = tailer.task.check
    return tailer


def _expect_keys_if_public(settings: Settings) -> None:
    """Refuse to serve strangers by mistake."""
    if settings.require_keys or settings.allow_anonymous or is_loopback(settings.host):
        return
    raise StartupError(
        f"others could reach {settings.host} and do all that the API can: set DF_REQUIRE_KEYS=1 "
        "(see `dreamforge keys`), or DF_ALLOW_ANONYMOUS=1 if that is meant"
    )


def _api_config(settings: Settings) -> ApiConfig:
    """The settings of the API. Those with the same name are copied."""
    return msgspec.structs.replace(
        msgspec.convert(settings, ApiConfig, from_attributes=True),
        eager_s=settings.eager_timeout_s if settings.eager else None,
        logs_tail_default=min(settings.logs_tail_default, settings.logs_tail_max),
        hosts=served_hosts(settings),
        weights=settings.progress_weights,
    )


async def _orchestrator(context: ProcessContext, stack: AsyncExitStack) -> None:
    settings = context.settings
    key = anchoring.load_signing_key(settings)
    _subscribe(context, stack, Orchestrator(context.log, context.committer, context.actor))
    quarantine = Quarantine(context.log, context.actor)
    context.notices["quarantine"] = quarantine.check
    cancel_on_exit(stack, context.spawn(quarantine.run(), "quarantine"))
    if key is None or settings.anchor_every_s is None:
        return
    store = None if settings.s3_endpoint is None else context.create_store()
    if store is not None:
        stack.push_async_callback(store.close)
    signing = anchoring.sign_anchors_regularly(context.log, store, key, context.actor, settings.anchor_every_s)
    cancel_on_exit(stack, context.spawn(signing, "anchors"))


async def _projector(context: ProcessContext, stack: AsyncExitStack) -> None:
    _subscribe(context, stack, Projector(context.database), gather_s=_PROJECTOR_GATHER_S)
    cancel_on_exit(stack, context.spawn(_rebuild_outdated(context.settings), "rebuild"))


async def _rebuild_outdated(settings: Settings) -> None:
    """If this release keeps other things of a job than what serves, build its read model, and let it take over."""
    async with open_database(settings, "dreamforge-rebuild", bounded=False) as database:
        rebuild = Rebuild(database)
        serving = (await retry_until_available("rebuild", rebuild.state)).views_version
        if serving > job_view.VIEWS_VERSION:
            _log.warning("a later release keeps the read model: this projector stands by", views_version=serving)
        if serving >= job_view.VIEWS_VERSION:
            return
        _log.info("rebuilding the read model", views_version=job_view.VIEWS_VERSION, serving=serving)
        try:
            lag = await retry_until_available("rebuild", rebuild.run)
        except RebuildFailed as error:
            _log.warning("the read model was not rebuilt; what serves serves on", reason=str(error))
        else:
            _log.info("the read model was rebuilt", lag_s=round(lag, 3))


def _subscribe(context: ProcessContext, stack: AsyncExitStack, handler: Handler, gather_s: float = 0.0) -> None:
    subscription = Subscription(
        context.log,
        context.notifier,
        handler,
        codec.is_known,
        poll_s=context.settings.poll_s,
        gather_s=gather_s,
        source=context.tailer,
    )
    task = context.spawn(subscription.run(), handler.name)

    async def check() -> None:
        for cursor in subscription.cursors.values():
            if cursor.failure is not None:
                raise NotReady(f"partition {cursor.partition} is stalled: {cursor.failure}")

    context.checks[handler.name] = check
    SUBSCRIPTION_FAILED.labels(handler.name).set_function(
        lambda: float(any(cursor.failure is not None for cursor in subscription.cursors.values()))
    )
    cancel_on_exit(stack, task)


async def _runner(context: ProcessContext, stack: AsyncExitStack) -> None:
    settings = context.settings
    store = context.create_store()
    stack.push_async_callback(store.close)
    context.checks["object_store"] = store.check_ready
    await _create_bucket(context, store)
    item_renderer = _create_item_renderer(context)
    if not settings.fake_runner and settings.model is None and await _has_no_generator(context):
        _log.warning("no model is configured: the fake engine paints; set DF_FAKE_RUNNER=1 to say that it should")
    stack.push_async_callback(item_renderer.stop_engine)
    steps = StepRunner(
        JobService(context.log, context.committer, context.actor),
        store,
        item_renderer,
        retry=RetryPolicy(
            max_attempts=settings.max_attempts,
            first_delay_s=settings.retry_base_s,
            longest_delay_s=settings.retry_max_s,
            timeout_s=settings.step_timeout_s,
            outage_s=settings.store_patience_s,
        ),
        name=context.actor,
    )
    # What was begun is finished before anything new is begun.
    outbox = Outbox(context.database, list(reversed(STEP_KINDS)), step_command.decode)
    consumer = Consumer(outbox, context.notifier, steps.run, slots=settings.slots, lease_s=settings.lease_s)
    running = context.spawn(consumer.run(), "runner")
    context.checks["heartbeat"] = consumer.heartbeat.check
    WORKER_READY.set_function(lambda: float(consumer.ready))

    async def stop() -> None:
        steps.stop()
        consumer.stop()
        if not (await asyncio.wait({running}, timeout=settings.shutdown_grace_s))[0]:
            steps.give_up()
            await asyncio.wait({running}, timeout=_HAND_BACK_TIMEOUT_S)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    stack.push_async_callback(stop)


async def _has_no_generator(context: ProcessContext) -> bool:
    models = await retry_until_available("models", ModelCatalogue(context.log).all)
    return not any(model.available and model.kind == "generator" for model in models)


def _create_item_renderer(context: ProcessContext) -> ItemRenderer:
    settings = context.settings
    return ItemRenderer(
        create_fake_renderer(settings, FaultPlan.parse(settings.fake_fail or "")),
        UnboundedThreadExecutor(),
        ModelChoices(ModelCatalogue(context.log), default_generator=settings.model)
        if not settings.fake_runner
        else NO_MODELS,
        BatchScheduler(create_engine_process(settings), batch_max=settings.batch_max),
    )


async def _create_bucket(context: ProcessContext, store: ObjectStore) -> None:
    """Make the bucket; a store that is away must not keep the runner from starting, puts are tried again."""
    try:
        await store.ensure_bucket()
    except Exception as error:  # noqa: BLE001  # whatever keeps it away is told, and shows in /readyz
        _log.warning("can't reach the bucket yet", bucket=context.settings.s3_bucket, error=str(error))
