"""What piles up costs no process more memory than it should: waiting jobs, and readers that do not read."""

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Iterator
from urllib.parse import urlsplit

import psutil
import pytest

from artifacts.object_store import S3Config
from eventstore.committer import Transition
from eventstore.ids import new_id
from eventstore.log import Append
from orchestrator.events import PersonalText
from tests.conftest import Backends, fresh_database
from tests.kit import Api, Service, Store, event, eventually, job_created, roles_environ

JOBS = int(os.environ.get("DF_TEST_WAITING_JOBS", "1000"))
READERS = int(os.environ.get("DF_TEST_SLOW_READERS", "200"))
MIB = 2**20
MOST_MIB = 256
"""Of one process, whatever waits: a role takes 80 to 110 when it has nothing to do."""


@pytest.fixture(scope="module")
def crowded_url(backends: Backends) -> Iterator[str]:
    """A database with many jobs that nobody has worked on."""
    with fresh_database(backends) as url:
        asyncio.run(_submit(url))
        yield url


async def _submit(url: str) -> None:
    store = Store(url, listen=False)
    for start in range(0, JOBS, 500):
        transitions = []
        for _ in range(min(500, JOBS - start)):
            first = event(job_created(scale=2), private=PersonalText(prompt="a castle" * 20))
            transitions.append(Transition(append=Append(stream=new_id(), category="job", expected=0, events=(first,))))
        await asyncio.gather(*(store.committer.commit(one) for one in transitions))
    await store.close()


@contextlib.asynccontextmanager
async def services(url: str, s3: S3Config, *roles: str) -> AsyncIterator[list[Service]]:
    """A process for each role."""
    started = [Service(role, roles_environ(url, s3, DF_STREAM_MAX_S="600")) for role in roles]
    try:
        yield started
    finally:
        for service in started:
            service.stop()


def memory(service: Service) -> float:
    """What a process has of the machine's memory, in MiB."""
    return float(psutil.Process(service.process.pid).memory_info().rss / MIB)


async def test_waiting_jobs_wait_in_the_database(crowded_url: str, s3_config: S3Config) -> None:
    """Given jobs by the thousand, then each process that has to do with them all stays as small as ever."""
    store = Store(crowded_url, listen=False)
    async with services(crowded_url, s3_config, "orchestrator", "projector", "api") as started:
        api = Api(started[2].url)

        async def sent() -> bool:
            rows = await store.database.read("select count(*) as waiting from pgmq.q_generate")
            projected = await store.database.read("select count(*) as known from readmodel.jobs")
            return bool(rows[0]["waiting"] == projected[0]["known"] == JOBS)

        await eventually(sent, within=300, what="a command and a row for every job")
        seen, cursor = 0, None
        while seen == 0 or cursor is not None:
            page = api.get("/v1/jobs", limit=200, **({} if cursor is None else {"cursor": cursor}))
            seen, cursor = seen + len(page["jobs"]), page["next_cursor"]
        assert seen == JOBS
        used = {service.role: memory(service) for service in started}
        api.close()
    await store.close()
    print(f"{JOBS} waiting jobs: " + ", ".join(f"{role} {mib:.0f} MiB" for role, mib in used.items()))  # noqa: T201
    assert max(used.values()) < MOST_MIB


async def test_readers_that_do_not_read_are_not_buffered_for(crowded_url: str, s3_config: S3Config) -> None:
    """Given readers of the whole log that read nothing, then the API serves others, and forgets them when they go."""
    async with services(crowded_url, s3_config, "api") as [service]:
        api = Api(service.url)
        process = psutil.Process(service.process.pid)
        api.get("/v1/jobs")
        files, before = process.num_fds(), memory(service)
        address = (urlsplit(service.url).hostname, urlsplit(service.url).port)
        with contextlib.ExitStack() as stack:
            for _ in range(READERS):
                reader = stack.enter_context(socket.socket())
                reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                reader.connect(address)
                reader.sendall(b"GET /v1/events/stream?from=start HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")

            async def open_streams() -> bool:
                return bool(process.num_fds() >= files + READERS)

            await eventually(open_streams, within=120, what="every reader's stream")
            assert api.job(api.create(count=1))["status"] == "queued"
            grown = memory(service) - before

        async def let_go() -> bool:
            return bool(process.num_fds() <= files + 8)

        await eventually(let_go, within=120, what="the end of every stream")
        api.close()
    print(f"{READERS} readers that do not read: {grown:.0f} MiB, {grown / READERS * 1024:.0f} KiB each")  # noqa: T201
    assert grown / READERS < 0.5
