"""A rebuild of the read model by several processes at once, watched while it runs."""

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

_WATCH_S = 0.25

_stop: Event
"""Set when the workers are to end; a process is given it when it starts."""


async def fill(rebuild: Rebuild, database: Database, workers: int) -> None:
    """Fill every chunk of a rebuild by some processes. Raises as `Rebuild.fill`."""
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    loop = asyncio.get_running_loop()
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_begin_worker, initargs=(stop,)) as pool:
        try:
            await asyncio.gather(
                *(loop.run_in_executor(pool, _fill, database.url, database.pooled) for _ in range(workers))
            )
        except BrokenProcessPool:
            raise RebuildFailed("a worker was killed, for want of memory perhaps: run it again, to go on") from None
        finally:
            stop.set()
    await rebuild.fill()


@asynccontextmanager
async def watched(rebuild: Rebuild, show: Callable[[ReadModelState], None]) -> AsyncIterator[None]:
    """Show how far a rebuild is, four times a second."""

    async def watch() -> None:
        while True:
            show(await rebuild.state())
            await asyncio.sleep(_WATCH_S)

    task = asyncio.create_task(watch())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def _begin_worker(stop: Event) -> None:
    global _stop  # noqa: PLW0603  # the one way in which a pool's process is given anything that can't be pickled
    _stop = stop
    gc.set_threshold(200_000)  # rows by the thousand, and no cycles: looking for those took a tenth of the time
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who was asked to stop lets its workers end their chunks
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A pool's process would wait without end for one that was killed. What it was filling is rolled back."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _fill(url: str, pooled: bool) -> None:  # noqa: FBT001  # run_in_executor passes no names
    asyncio.run(_fill_all(url, pooled=pooled))


async def _fill_all(url: str, *, pooled: bool) -> None:
    database = Database(url, pooled=pooled, bounded=False, role="dreamforge-rebuild")
    try:
        await Rebuild(database).fill(lambda: not _stop.is_set())
    finally:
        await database.close()
