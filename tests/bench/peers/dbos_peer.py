"""DBOS: a job is one workflow of two steps on a queue. The client waits by its workflow handle, which polls."""

import asyncio
import signal
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import asyncpg
import msgspec
from dbos import DBOS, DBOSClient, DBOSConfig, EnqueueOptions

from tests.bench.peers.protocol import RowCounter, answer_requests, main
from tests.bench.work import THREADS, Boto3Steps, Job, PeerConfig

_QUEUE = "images"
_APPLICATION = "bench"
_POLL_QUEUE_S = 0.02
"""DBOS polls a queue each second unless told otherwise, which would be all that a job alone shows."""
_POLL_RESULT_S = 0.001
_CLIENT_CONNECTIONS = 5
_SUCCEEDED = "select count(*) from dbos.workflow_status where status = 'SUCCESS'"


def _launch(config: PeerConfig, steps: Boto3Steps | None) -> None:
    """Start DBOS in this process, with its workflow and its queue."""

    def generate(job: dict[str, Any]) -> None:
        if steps is not None:
            steps.generate(msgspec.convert(job, Job))

    def upscale(job: dict[str, Any]) -> None:
        if steps is not None:
            steps.upscale(msgspec.convert(job, Job))

    first, second = DBOS.step(name="generate")(generate), DBOS.step(name="upscale")(upscale)

    def image_job(job: dict[str, Any]) -> None:
        first(job)
        second(job)

    DBOS.workflow(name="image_job")(image_job)
    DBOS(
        config=DBOSConfig(
            name=_APPLICATION,
            system_database_url=config.db_url,
            sys_db_pool_size=2 * THREADS,
            log_level="WARNING",
            application_version="1",
            max_executor_threads=4 * THREADS,
        )
    )
    DBOS.launch()
    DBOS.register_queue(_QUEUE, worker_concurrency=THREADS, polling_interval_sec=_POLL_QUEUE_S)


def install(config: PeerConfig) -> None:
    """Create DBOS's tables and the queue."""
    _launch(config, None)
    DBOS.destroy()


def work(config: PeerConfig) -> None:
    """Run workflows until SIGTERM."""
    _launch(config, Boto3Steps(config))
    signal.pause()


class DbosClient:
    """Enqueues workflows from as many threads as the client has connections."""

    def __init__(self, client: DBOSClient, connection: asyncpg.Connection) -> None:
        self._client = client
        self._threads = ThreadPoolExecutor(_CLIENT_CONNECTIONS)
        self._succeeded = RowCounter(connection, _SUCCEEDED)

    async def run_all(self, jobs: list[Job]) -> None:
        """Enqueue jobs; return when the last has succeeded."""
        before = await self._succeeded.count()
        loop = asyncio.get_running_loop()
        await asyncio.gather(*(loop.run_in_executor(self._threads, self._enqueue, job) for job in jobs))
        await self._succeeded.wait_for(before + len(jobs))

    async def run_alone(self, job: Job) -> None:
        """Enqueue a job; return when its handle has the result."""
        await asyncio.to_thread(lambda: self._enqueue(job).get_result(polling_interval_sec=_POLL_RESULT_S))

    def _enqueue(self, job: Job) -> Any:
        options: EnqueueOptions = {"workflow_name": "image_job", "queue_name": _QUEUE}
        return self._client.enqueue(options, msgspec.to_builtins(job))


async def _answer(config: PeerConfig) -> None:
    client = DBOSClient(
        system_database_url=config.db_url,
        application_name=_APPLICATION,
        system_database_pool_size=_CLIENT_CONNECTIONS,
    )
    await answer_requests(DbosClient(client, await asyncpg.connect(config.db_url)))


if __name__ == "__main__":
    main({"install": install, "work": work, "client": lambda config: asyncio.run(_answer(config))})
