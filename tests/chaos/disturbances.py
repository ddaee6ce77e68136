"""The disturbances of a service: each breaks something, and repairs it before it returns."""

import asyncio
import contextlib
import random
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

import asyncpg
import msgspec

from tests.chaos.deployment import LEASE_S, Deployment
from tests.chaos.poison import AWAY, POISONS
from tests.kit import SERVICE_LOGIN

_AT_ONCE = 20
_TERMINATE = """
select pg_terminate_backend(pid) from (
    select pid from pg_stat_activity where usename = $1 order by random() limit $2) as victims
"""


class Disturbance(msgspec.Struct, frozen=True):
    """A repeated disturbance. pause: shortest and longest time between two, in seconds."""

    strike: Callable[[Deployment], Awaitable[None]]
    pause: tuple[float, float]


async def restart_postgres(deployment: Deployment) -> None:
    """Crash and restart PostgreSQL."""
    await asyncio.to_thread(deployment.backend.restart_postgres)
    deployment.hits["postgres"] += 1


async def terminate_backends(deployment: Deployment) -> None:
    """Terminate connections of the service, ten per second."""
    async with _owner(deployment) as owner:
        for _ in range(20):
            deployment.hits["backends"] += len(await owner.fetch(_TERMINATE, SERVICE_LOGIN[0], 1))
            await asyncio.sleep(0.1)


async def kill(deployment: Deployment) -> None:
    """Kill a process, but not faster than others can start."""
    if len(deployment.fleet.serving()) > len(deployment.fleet.members) / 2:
        random.choice(deployment.fleet.members).signal(signal.SIGKILL)
        deployment.hits["sigkill"] += 1


async def freeze(deployment: Deployment) -> None:
    """Freeze a few runners and orchestrators for longer than the lease."""
    candidates = deployment.fleet.serving("runner", "orchestrator")
    victims = random.sample(candidates, min(2, len(candidates)))
    for victim in victims:
        victim.signal(signal.SIGSTOP)
    try:
        await asyncio.sleep(random.uniform(1.1, 1.5) * LEASE_S)
    finally:
        for victim in victims:
            victim.signal(signal.SIGCONT)
    deployment.hits["freeze"] += len(victims)


async def restart_store(deployment: Deployment) -> None:
    """Kill the object store, and restart it some seconds later."""
    await asyncio.to_thread(deployment.backend.restart_store, random.uniform(1, 3))
    deployment.hits["s3"] += 1


async def take_slots(deployment: Deployment) -> None:
    """Another login takes all connections of PostgreSQL, including the service's, for some seconds."""
    taken: list[asyncpg.Connection] = []
    try:
        await _take_all(deployment.backend.stranger_url, taken)
        async with _owner(deployment) as owner:
            await owner.fetch(_TERMINATE, SERVICE_LOGIN[0], None)
        for _ in range(random.randint(4, 8)):
            await _take_all(deployment.backend.stranger_url, taken)
            await asyncio.sleep(0.5)
        deployment.hits["slots"] += 1
    finally:
        for connection in taken:
            connection.terminate()


async def lose_standby(deployment: Deployment) -> None:
    """Stop the synchronous standby for some seconds; an operator cancels half of the waiting commits."""
    pair = deployment.backend.pair
    assert pair is not None
    await asyncio.to_thread(pair.lose)
    try:
        for _ in range(random.randint(4, 12)):
            await asyncio.sleep(0.25)
            if random.random() < 0.5:
                await pair.cancel_waits()
    finally:
        await asyncio.to_thread(pair.regain)
    deployment.hits["standby"] += 1


async def poison(deployment: Deployment) -> None:
    """Append an unreadable event to a job, or one on which the code fails, at its start, middle or end."""
    await random.choice(POISONS)(deployment)
    deployment.hits["poison"] += 1


@contextlib.asynccontextmanager
async def _owner(deployment: Deployment) -> AsyncIterator[asyncpg.Connection]:
    """A connection of the database's owner, for whom PostgreSQL reserves a few slots."""
    connection = await asyncpg.connect(deployment.backend.url, timeout=10)
    try:
        yield connection
    finally:
        connection.terminate()


async def _take_all(url: str, taken: list[asyncpg.Connection]) -> None:
    rejected = False
    while not rejected:
        answers = await asyncio.gather(
            *(asyncpg.connect(url, timeout=10) for _ in range(_AT_ONCE)), return_exceptions=True
        )
        taken.extend(one for one in answers if isinstance(one, asyncpg.Connection))
        rejected = any(isinstance(one, BaseException) for one in answers)


DISTURBANCES: Mapping[str, Disturbance] = {
    "postgres": Disturbance(restart_postgres, (2, 5)),
    "backends": Disturbance(terminate_backends, (0, 0.1)),
    "sigkill": Disturbance(kill, (0.5, 1.5)),
    "freeze": Disturbance(freeze, (0.2, 1)),
    "s3": Disturbance(restart_store, (2, 5)),
    "slots": Disturbance(take_slots, (2, 4)),
    "standby": Disturbance(lose_standby, (2, 5)),
    "poison": Disturbance(poison, (0.2, 1)),
}


async def disturb(deployment: Deployment, name: str, calm: asyncio.Event, pace: float) -> None:
    """Run a disturbance with pauses until `calm` is set; the last one is repaired, too. pace: factor for the pauses."""
    disturbance = DISTURBANCES[name]
    while not calm.is_set():
        try:
            await disturbance.strike(deployment)
        except AWAY:  # another disturbance has taken away what this one needs
            await asyncio.sleep(0.5)
        await asyncio.sleep(pace * random.uniform(*disturbance.pause))
