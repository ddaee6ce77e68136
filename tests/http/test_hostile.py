"""Nothing that a client sends, by mistake or on purpose, breaks the service or stays behind in it."""

import asyncio
import os
from collections import Counter
from collections.abc import Iterator

import psutil
import pytest

from artifacts.object_store import S3Config
from tests.conftest import Backends, fresh_database
from tests.http.conftest import running
from tests.http.hostile import Hostile, Sent, status_of
from tests.kit import Api, Service, eventually

REQUESTS = int(os.environ.get("DF_TEST_HOSTILE", "1500"))
AT_ONCE = 16
SEED = 2026
MIB = 2**20


@pytest.fixture(scope="module")
def target(backends: Backends, s3_config: S3Config) -> Iterator[Service]:
    """An API alone, so that what is accepted costs no pixels."""
    with fresh_database(backends) as url, running("api", url, s3_config, DF_STREAM_MAX_S="0.5") as service:
        yield service


async def attack(service: Service, hostile: Hostile, count: int) -> tuple[Counter[int | None], list[Sent]]:
    """Send so many requests; the statuses, and those whose answer was the server's fault."""
    host, port = service.url.removeprefix("http://").split(":")
    places = asyncio.Semaphore(AT_ONCE)
    statuses: Counter[int | None] = Counter()
    faults: list[Sent] = []

    async def one(sent: Sent) -> None:
        async with places:
            status = await status_of(host, int(port), sent)
        statuses[status] += 1
        if status is not None and status >= 500:
            faults.append(sent)

    await asyncio.gather(*(one(hostile.request()) for _ in range(count)))
    return statuses, faults


async def test_hostile_requests_are_answered_and_leave_nothing_behind(target: Service) -> None:
    """Given thousands of requests that no client should send, then none is a 5xx, and memory and files stay flat."""
    hostile = Hostile(SEED)
    process = psutil.Process(target.process.pid)
    await attack(target, hostile, 500)  # what the first requests make stays for good: pools, caches, compiled code
    files, memory = process.num_fds(), process.memory_info().rss
    statuses, faults = await attack(target, hostile, REQUESTS)

    async def settled() -> bool:
        return bool(process.num_fds() <= files + AT_ONCE)

    await eventually(settled, within=60, what="the closing of every connection")
    grown = (process.memory_info().rss - memory) / MIB
    print(f"{sum(statuses.values())} requests: {dict(sorted(statuses.items(), key=str))}; {grown:+.1f} MiB")  # noqa: T201  # with -s
    assert faults == []
    assert grown < 64
    assert "Traceback" not in "".join(target.lines)
    assert {200, 400, 404, 405, 413, 415, 422} <= statuses.keys()
    api = Api(target.url)
    assert api.job(api.create(count=1))["status"] == "queued"
    api.close()
