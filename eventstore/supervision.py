"""Long-lived tasks that start again when they fail."""

import asyncio
import time
from collections.abc import Awaitable, Callable

import structlog

from eventstore.database import Backoff

_FAILURE_SHOWN_S = 10.0
"""For how long a failure shows: a task that fails at each piece of work must not look healthy in between."""

_log = structlog.get_logger(__name__)


class SupervisedTask:
    """A task of the process that runs some work, and runs it again after each failure, until the work returns.

    name: in logs and readiness. `start` does nothing while it runs; `stop` may be called twice.
    """

    def __init__(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        self.name = name
        self._work = work
        self._task: asyncio.Task[None] | None = None
        self._failure = ""
        self._failed_at: float | None = None

    @property
    def failure(self) -> str | None:
        """Why it failed, if it has within the last ten seconds."""
        if self._failed_at is None or time.monotonic() - self._failed_at > _FAILURE_SHOWN_S:
            return None
        return self._failure

    async def check(self) -> None:
        """For readiness: raise `TaskFailed` if it has failed lately."""
        if (failure := self.failure) is not None:
            raise TaskFailed(f"failed and was started again: {failure}")

    def start(self) -> None:
        """Run the work, unless it runs already."""
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name=self.name)

    async def stop(self, *, grace_s: float = 0.0) -> None:
        """Wait a while for the work to return, then cancel it."""
        if self._task is None:
            return
        if grace_s:
            await asyncio.wait({self._task}, timeout=grace_s)
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        backoff = Backoff()
        while True:
            began = time.monotonic()
            try:
                await self._work()
            except Exception as error:  # noqa: BLE001  # the task must continue after any error
                self._failure = f"{type(error).__name__}: {error}"
                self._failed_at = time.monotonic()
                _log.exception("task failed, starting it again", task=self.name)
                if time.monotonic() - began > _FAILURE_SHOWN_S:
                    backoff.reset()
                await backoff.wait()
            else:
                return


class TaskFailed(Exception):
    """A task of the process has failed lately."""
