"""PgQueuer: the step's handler enqueues the next step. Set up by its guide "Performance Tuning".

A job alone has ended when its last handler says so by NOTIFY: PgQueuer's own record of the end is written in batches,
up to 0.1 s later, and its CompletionWatcher needs the id of the second step, which the client does not know.
"""

import asyncio
import logging

import asyncpg
import msgspec
import uvloop
from pgqueuer import PgQueuer
from pgqueuer.db import AsyncpgPoolDriver
from pgqueuer.models import Job as Queued
from pgqueuer.queries import Queries

from tests.bench.peers.protocol import RowCounter, answer_requests, main
from tests.bench.work import Job, PeerConfig, async_steps

_BATCH = 25
_ENDED = "bench_ended"
_SUCCEEDED = "select count(*) from pgqueuer_log where entrypoint = 'upscale' and status = 'successful'"


def install(config: PeerConfig) -> None:
    """Create PgQueuer's tables, all of them logged."""

    async def run() -> None:
        async with asyncpg.create_pool(config.db_url, min_size=1, max_size=2) as pool:
            queries = Queries(AsyncpgPoolDriver(pool))
            await queries.install()
            await queries.optimize_autovacuum()

    uvloop.run(run())


def work(config: PeerConfig) -> None:
    """Run handlers, on uvloop as `pgq run` does."""
    logging.disable(logging.INFO)
    uvloop.run(_work(config))


async def _work(config: PeerConfig) -> None:
    steps = async_steps(config)
    async with asyncpg.create_pool(config.db_url, min_size=5, max_size=20) as pool:
        forge = PgQueuer.from_asyncpg_connection(await asyncpg.connect(config.db_url))
        queries = Queries(AsyncpgPoolDriver(pool))

        async def generate(queued: Queued) -> None:
            await steps.generate(msgspec.json.decode(queued.payload or b"", type=Job))
            await queries.enqueue("upscale", queued.payload)

        async def upscale(queued: Queued) -> None:
            await steps.upscale(msgspec.json.decode(queued.payload or b"", type=Job))

        async def upscale_alone(queued: Queued) -> None:
            await upscale(queued)
            await pool.execute(f"notify {_ENDED}")

        async def generate_alone(queued: Queued) -> None:
            await steps.generate(msgspec.json.decode(queued.payload or b"", type=Job))
            await queries.enqueue("upscale_alone", queued.payload)

        for handler in (generate, upscale, generate_alone, upscale_alone):
            forge.entrypoint(handler.__name__)(handler)
        await forge.run(batch_size=_BATCH)


class PgQueuerClient:
    """Enqueues all jobs with one statement."""

    def __init__(self, queries: Queries, connection: asyncpg.Connection) -> None:
        self._queries = queries
        self._succeeded = RowCounter(connection, _SUCCEEDED)
        self._ended = asyncio.Event()

    async def run_all(self, jobs: list[Job]) -> None:
        """Enqueue jobs; return when the last is recorded as successful."""
        before = await self._succeeded.count()
        payloads: list[bytes | None] = [msgspec.json.encode(job) for job in jobs]
        await self._queries.enqueue(["generate"] * len(jobs), payloads, [0] * len(jobs))
        await self._succeeded.wait_for(before + len(jobs))

    async def run_alone(self, job: Job) -> None:
        """Enqueue a job; return when its last handler has sent NOTIFY."""
        self._ended.clear()
        await self._queries.enqueue("generate_alone", msgspec.json.encode(job))
        await self._ended.wait()

    def job_ended(self, *_: object) -> None:
        """A notification has arrived."""
        self._ended.set()


async def _answer(config: PeerConfig) -> None:
    async with asyncpg.create_pool(config.db_url, min_size=2, max_size=4) as pool:
        connection = await asyncpg.connect(config.db_url)
        client = PgQueuerClient(Queries(AsyncpgPoolDriver(pool)), connection)
        await connection.add_listener(_ENDED, client.job_ended)
        await answer_requests(client)


if __name__ == "__main__":
    main({"install": install, "work": work, "client": lambda config: uvloop.run(_answer(config))})
