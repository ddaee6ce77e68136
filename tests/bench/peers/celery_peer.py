"""Celery on Redis: a job is a chain of two tasks. The client of one alone waits for the result backend to notify it."""

import asyncio
import contextlib
import time
from typing import Any

import celery
import celery.exceptions
import msgspec

from tests.bench.peers.protocol import answer_requests, main
from tests.bench.work import Boto3Steps, Job, PeerConfig

_RESULT_LIMIT_S = 240
_POLL_S = 0.01


class _Worker:
    """Makes the S3 client in each child process, as boto3 wants it: it must not be forked."""

    def __init__(self, config: PeerConfig) -> None:
        self._config = config
        self._steps: Boto3Steps | None = None

    @property
    def steps(self) -> Boto3Steps:
        """The steps of this process."""
        if self._steps is None:
            self._steps = Boto3Steps(self._config)
        return self._steps


def _make_app(config: PeerConfig) -> celery.Celery:
    app = celery.Celery("bench", broker=config.redis_url, backend=config.redis_url)
    app.conf.update(
        worker_prefetch_multiplier=64, worker_hijack_root_logger=False, broker_connection_retry_on_startup=False
    )
    worker = _Worker(config)

    def generate(job: dict[str, Any]) -> dict[str, Any]:
        worker.steps.generate(msgspec.convert(job, Job))
        return job

    def upscale(job: dict[str, Any]) -> None:
        worker.steps.upscale(msgspec.convert(job, Job))

    app.task(generate, name="generate", ignore_result=True)
    app.task(upscale, name="upscale")
    return app


def install(config: PeerConfig) -> None:
    """Remove what an earlier worker has left in Redis."""
    _make_app(config).control.purge()


def work(config: PeerConfig) -> None:
    """Run tasks in as many processes as there are cores, Celery's default; without chatter between workers."""
    quiet = ("--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel=WARNING")
    _make_app(config).worker_main(["worker", *quiet])


class CeleryClient:
    """Sends chains one by one: Celery has no way to send several at once."""

    def __init__(self, app: celery.Celery) -> None:
        self._generate = app.tasks["generate"]
        self._upscale = app.tasks["upscale"]

    async def run_all(self, jobs: list[Job]) -> None:
        """Send jobs; return when all have a result, which is polled."""
        await asyncio.to_thread(self._run_all, jobs)

    async def run_alone(self, job: Job) -> None:
        """Send a job; return when the result backend has sent its result."""
        await asyncio.to_thread(self._run_alone, job)

    def _run_all(self, jobs: list[Job]) -> None:
        deadline = time.monotonic() + _RESULT_LIMIT_S
        for result in [self._send(job) for job in jobs]:
            while not result.ready():
                if time.monotonic() > deadline:
                    raise TimeoutError(f"no result of {result.id} within {_RESULT_LIMIT_S} s: {result.state}")
                time.sleep(_POLL_S)
            result.get()

    def _run_alone(self, job: Job) -> None:
        result = self._send(job)
        for _ in range(_RESULT_LIMIT_S):
            # Once a wait for a result ended after two minutes without one: a new `get` asks for it again.
            with contextlib.suppress(celery.exceptions.TimeoutError):
                result.get(timeout=1)
                return
        raise TimeoutError(f"no result of {result.id} within {_RESULT_LIMIT_S} s: {result.state}")

    def _send(self, job: Job) -> Any:
        return celery.chain(self._generate.s(msgspec.to_builtins(job)), self._upscale.s()).apply_async()


if __name__ == "__main__":
    main(
        {
            "install": install,
            "work": work,
            "client": lambda config: asyncio.run(answer_requests(CeleryClient(_make_app(config)))),
        }
    )
