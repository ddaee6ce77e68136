"""Procrastinate: the step's task defers the next step. It reports no ends: the client polls the jobs' table."""

import asyncio
import logging
from typing import Any

import asyncpg
import msgspec
import procrastinate

from tests.bench.peers.protocol import RowCounter, answer_requests, main
from tests.bench.work import THREADS, AsyncSteps, Job, PeerConfig, async_steps

_SUCCEEDED = "select count(*) from procrastinate_jobs where task_name = 'upscale' and status = 'succeeded'"
_POLL_ALONE_S = 0.001


def _make_app(config: PeerConfig, steps: AsyncSteps | None = None) -> procrastinate.App:
    """The application. steps: of a worker; a client only defers."""
    connector = procrastinate.PsycopgConnector(conninfo=config.db_url, min_size=4, max_size=THREADS + 2)
    app = procrastinate.App(connector=connector)

    async def generate(job: dict[str, Any]) -> None:
        if steps is not None:
            await steps.generate(msgspec.convert(job, Job))
        await app.tasks["upscale"].defer_async(job=job)

    async def upscale(job: dict[str, Any]) -> None:
        if steps is not None:
            await steps.upscale(msgspec.convert(job, Job))

    app.task(name="generate")(generate)
    app.task(name="upscale")(upscale)
    return app


def install(config: PeerConfig) -> None:
    """Create Procrastinate's tables."""

    async def run() -> None:
        async with _make_app(config).open_async() as app:
            await app.schema_manager.apply_schema_async()

    asyncio.run(run())


def work(config: PeerConfig) -> None:
    """Run tasks, as many at once as there are threads for them."""

    async def run() -> None:
        async with _make_app(config, async_steps(config)).open_async() as app:
            await app.run_worker_async(concurrency=THREADS)

    logging.disable(logging.INFO)
    asyncio.run(run())


class ProcrastinateClient:
    """Defers all jobs with one statement."""

    def __init__(self, app: procrastinate.App, connection: asyncpg.Connection) -> None:
        self._generate = app.tasks["generate"]
        self._succeeded = RowCounter(connection, _SUCCEEDED)

    async def run_all(self, jobs: list[Job]) -> None:
        """Defer jobs; return when the last has succeeded."""
        before = await self._succeeded.count()
        await self._generate.batch_defer_async(*({"job": msgspec.to_builtins(job)} for job in jobs))
        await self._succeeded.wait_for(before + len(jobs))

    async def run_alone(self, job: Job) -> None:
        """Defer a job; poll until it has succeeded."""
        before = await self._succeeded.count()
        await self._generate.defer_async(job=msgspec.to_builtins(job))
        await self._succeeded.wait_for(before + 1, every_s=_POLL_ALONE_S)


async def _answer(config: PeerConfig) -> None:
    async with _make_app(config).open_async() as app:
        await answer_requests(ProcrastinateClient(app, await asyncpg.connect(config.db_url)))


if __name__ == "__main__":
    main({"install": install, "work": work, "client": lambda config: asyncio.run(_answer(config))})
