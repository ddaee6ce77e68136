"""A service of several processes with its backend and clients, and the disturbances so far."""

import asyncio
import contextlib
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from functools import partial
from pathlib import Path
from uuid import UUID

import asyncpg
import msgspec

from tests.chaos.backend import Backend
from tests.chaos.clients import Clients
from tests.chaos.fleet import Fleet
from tests.kit import project_root, roles_environ

LEASE_S = 5.0
"""Short, so that freezes often outlast the lease."""

_ENVIRON = {
    "DF_LEASE_S": str(LEASE_S),
    # An attempt that ends before its first image makes no progress, and here anything may end any attempt.
    "DF_MAX_ATTEMPTS": "10",
    "DF_RETRY_BASE_S": "0.2",
    "DF_RETRY_MAX_S": "5",
    "DF_RUNNER_SLOTS": "4",
}
_UNSETTLED = """
select (select count(*) from (
        select distinct on (stream_id) code from eventstore.events
        where category = 'job' order by stream_id, version desc
    ) as newest where code not in ('job.finish', 'job.quarantined')) as jobs,
    (select sum(commands) from eventstore.queue_lengths()) as commands,
    (select sum((select coalesce(max(e.position), 0) from eventstore.events e where e.partition = s.partition)
        - s.position) from eventstore.standings s) as unpassed
"""


class Stuck(AssertionError):
    """The service made no progress for too long."""


class Scale(msgspec.Struct, frozen=True, kw_only=True):
    """The size of a service. shape: processes of each role. clients: each has one running job.

    still_s: how long nothing at all may happen before it counts as stuck.
    """

    shape: Mapping[str, int]
    clients: int
    still_s: float = 240.0


class Deployment(msgspec.Struct):
    """A running service. hits: number of disturbances by name. poisoned: jobs that were made unreadable."""

    scale: Scale
    backend: Backend
    fleet: Fleet
    clients: Clients
    hits: Counter[str] = msgspec.field(default_factory=Counter)
    poisoned: set[UUID] = msgspec.field(default_factory=set)

    async def work(self, jobs: int) -> float:
        """Submit jobs and wait for their ends. Returns the duration in seconds."""
        began, last = time.monotonic(), time.monotonic()
        heartbeat = self.clients.heartbeat
        working = asyncio.create_task(self.clients.run(jobs))
        try:
            while not working.done():
                await asyncio.wait({working}, timeout=1)
                if heartbeat != self.clients.heartbeat:
                    heartbeat, last = self.clients.heartbeat, time.monotonic()
                elif time.monotonic() - last > self.scale.still_s:
                    raise Stuck(f"still for {self.scale.still_s:g} s: {self.clients}; see {self.fleet.logs}")
        finally:
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)
        working.result()
        return time.monotonic() - began

    async def settle(self) -> None:
        """Wait until no job is open, no command is left and no subscription lags, or until there is no progress."""
        seen, last = None, time.monotonic()
        connection = await asyncpg.connect(self.backend.url)
        try:
            while time.monotonic() - last < self.scale.still_s:
                found = tuple(await connection.fetchrow(_UNSETTLED))
                if not any(found):
                    return
                if found != seen:
                    seen, last = found, time.monotonic()
                await asyncio.sleep(0.2)
        finally:
            await connection.close()


@contextlib.asynccontextmanager
async def running(home: Path, scale: Scale, *, standby: bool = False, code: str = "") -> AsyncIterator[Deployment]:
    """Runs a service during the block, with its data and logs in a home.

    standby: its commits wait for one. code: what each process imports before all else.
    """
    backend = await asyncio.to_thread(partial(Backend, home, standby=standby))
    try:
        await backend.prepare()
        environ = roles_environ(backend.url, backend.s3, **_ENVIRON)
        if code:
            (home / "sitecustomize.py").write_text(code)
            environ["PYTHONPATH"] = os.pathsep.join([str(home), str(project_root())])
        fleet = Fleet(environ, scale.shape, home / "logs")
        async with fleet.running():
            yield Deployment(scale, backend, fleet, Clients(fleet.apis, scale.clients))
    finally:
        await asyncio.to_thread(backend.stop)
