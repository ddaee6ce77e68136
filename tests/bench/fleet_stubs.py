"""Many runners of one slot in one process, which share its connections as behind a pooler: `fleet_stubs COUNT`.

Each reports itself, listens, polls and claims for itself, and runs what it has claimed.
"""

import asyncio
import os
import sys
from contextlib import AsyncExitStack

from dreamforge import roles
from dreamforge.process import ProcessContext, open_database, run_on_uvloop
from dreamforge.settings import load_settings


async def _serve(count: int) -> None:
    settings, _ = load_settings(os.environ)
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(open_database(settings, "dreamforge"))
        for _ in range(count):
            context = ProcessContext(settings, database, asyncio.Event())
            stack.push_async_callback(context.notifier.stop)
            context.notifier.start()
            await roles._runner(context, stack)
        await asyncio.Event().wait()


if __name__ == "__main__":
    run_on_uvloop(_serve(int(sys.argv[1])))
