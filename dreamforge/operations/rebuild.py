"""Rebuilds the read model with several processes, and shows the progress."""

import asyncio
import gc
import multiprocessing
import os
import signal
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import asynccontextmanager
from multiprocessing.synchronize import Event

from eventstore.database import Database
from projections.rebuild import ReadModelState, Rebuild, RebuildFailed

_PROGRESS_INTERVAL_S = 0.25

_stop_event: Event
"""Tells workers to end. Each worker process gets it at its start."""


async def fill_in_processes(rebuild: Rebuild, database: Database, worker_count: int) -> None:
    """Fill every chunk of a rebuild with several processes. Raises as `Rebuild.fill_chunks`."""
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    loop = asyncio.get_running_loop()
    with ProcessPoolExecutor(worker_count, mp_context=context, initializer=_init_worker, initargs=(stop,)) as pool:
        try:
            await asyncio.gather(
                *(
                    loop.run_in_executor(pool, _fill_in_worker, database.url, database.pooled)
                    for _ in range(worker_count)
                )
            )
        except BrokenProcessPool:
            raise RebuildFailed("a worker was killed, for want of memory perhaps: run it again, to go on") from None
        finally:
            stop.set()
    await rebuild.fill_chunks()


@asynccontextmanager
async def show_progress(rebuild: Rebuild, show_state: Callable[[ReadModelState], None]) -> AsyncIterator[None]:
    """Show a rebuild's progress four times a second."""

    async def watch() -> None:
        while True:
            show_state(await rebuild.state())
            await asyncio.sleep(_PROGRESS_INTERVAL_S)

    task = asyncio.create_task(watch())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def _init_worker(stop: Event) -> None:
    global _stop_event  # noqa: PLW0603  # the only way to pass an object that can't be pickled to a worker
    _stop_event = stop
    gc.set_threshold(200_000)  # thousands of rows and no cycles: collections took a tenth of the time
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # the parent process handles Ctrl-C and lets workers finish their chunks
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    """Exit when the parent process has died: a worker would wait for it forever. Its chunk is rolled back."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _fill_in_worker(url: str, pooled: bool) -> None:  # noqa: FBT001  # run_in_executor passes no names
    asyncio.run(_fill_chunks(url, pooled=pooled))


async def _fill_chunks(url: str, *, pooled: bool) -> None:
    database = Database(url, pooled=pooled, time_limited=False, application_name="dreamforge-rebuild")
    try:
        await Rebuild(database).fill_chunks(lambda: not _stop_event.is_set())
    finally:
        await database.close()
