"""Runs jobs under one disturbance or all, then checks the final state and the throughput afterwards.

submit and disturb ─▶ calm ─▶ all settled ─▶ judge ─▶ race against a service that had no trouble
"""

import asyncio
import statistics
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec

from tests.chaos.deployment import Deployment, Scale, running
from tests.chaos.disturbances import DISTURBANCES, disturb
from tests.chaos.final_state import Findings, check_final_state
from tests.chaos.poison import BROKEN_RULES

CAMPAIGNS: Mapping[str, Sequence[str]] = {
    "none": [],
    **{name: [name] for name in DISTURBANCES},
    "all": [*DISTURBANCES],
}
"""Disturbances by campaign. The first campaign has none: it shows how much two undisturbed services differ."""

_LONGER_S = 5.0
_PACE_OF_MANY = 4.0
"""Factor for the pauses when all disturbances run at once; without it, hardly any job would end."""


class Race(msgspec.Struct, frozen=True):
    """Jobs per second in alternating windows, of a disturbed service and of a control service."""

    disturbed: list[float]
    control: list[float]

    @property
    def recovered(self) -> bool:
        """Whether the disturbed median is at most one control spread below the control median."""
        return statistics.median(self.disturbed) >= statistics.median(self.control) - spread(self.control)


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """The result of a campaign.

    hits: how often was done what. complaints: warnings and errors in the processes' logs. broken: processes that ended
    though nobody killed them. surprises: answers that no client should get.
    """

    name: str
    jobs: int
    hits: dict[str, int]
    wall_s: float
    findings: Findings
    complaints: dict[str, int]
    broken: list[str]
    surprises: dict[str, int]
    race: Race | None

    @property
    def flaws(self) -> list[str]:
        """All failures, one sentence each."""
        return [
            *(f"{check}: {one}" for check, wrong in self.findings.wrong.items() for one in wrong),
            *self.broken,
            *(f"{n} times a client got {answer}" for answer, n in self.surprises.items()),
            *(["the service is slower than one that had no trouble"] if self.race and not self.race.recovered else []),
        ]


def spread(rates: Sequence[float]) -> float:
    """The interquartile range."""
    low, _, high = statistics.quantiles(rates, n=4)
    return high - low


async def run(
    name: str,
    jobs: int,
    scale: Scale,
    home: Path,
    *,
    longest_s: float | None = None,
    windows: int = 0,
    window: int = 0,
) -> Outcome:
    """Run a campaign in a home.

    longest_s: when to leave the service alone at the latest. windows: of the race, for each of the two; window: the
    jobs of each.
    """
    async with AsyncExitStack() as stack:
        names = CAMPAIGNS[name]
        code = BROKEN_RULES if "poison" in names else ""
        deployment = await stack.enter_async_context(
            running(home / "disturbed", scale, standby="standby" in names, code=code)
        )
        began = time.monotonic()
        await trouble(deployment, names, jobs, longest_s)
        await deployment.settle()
        wall_s = time.monotonic() - began
        race = None
        if windows:
            control = await stack.enter_async_context(running(home / "control", scale, standby="standby" in names))
            race = await alternate(deployment, control, windows, window)
            await deployment.settle()
        url = deployment.backend.url
        if deployment.backend.pair is not None:
            # What was answered must be on the standby: it is judged, and the primary is gone.
            url = await deployment.backend.pair.fail_over()
        clients = deployment.clients
        findings = await check_final_state(
            url, deployment.backend.s3, clients.acknowledged, clients.keys, deployment.poisoned
        )
    return Outcome(
        name=name,
        jobs=jobs,
        hits=dict(deployment.hits),
        wall_s=wall_s,
        findings=findings,
        complaints=dict(deployment.fleet.complaints()),
        broken=deployment.fleet.broken,
        surprises=dict(deployment.clients.surprises),
        race=race,
    )


async def trouble(deployment: Deployment, names: Sequence[str], jobs: int, longest_s: float | None) -> None:
    """Submit jobs under disturbances, which continue for a while after the last job; then wait until all jobs end."""
    calm = asyncio.Event()
    pace = _PACE_OF_MANY if len(names) > 1 else 1.0
    disturbing = [asyncio.create_task(disturb(deployment, name, calm, pace)) for name in names]
    working = asyncio.create_task(deployment.work(jobs))
    submitted = asyncio.create_task(deployment.clients.all_submitted.wait())
    try:
        try:
            await asyncio.wait({working, submitted}, timeout=longest_s, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.sleep(_LONGER_S)
        finally:
            calm.set()
            # Not cancelled: each mends what it has broken.
            await asyncio.gather(*disturbing)
        await working
    finally:
        submitted.cancel()
        working.cancel()
        await asyncio.gather(submitted, working, return_exceptions=True)


async def alternate(disturbed: Deployment, control: Deployment, windows: int, jobs: int) -> Race:
    """Measure both services in alternating windows, after a warm-up."""
    race = Race([], [])
    pairs = [(disturbed, race.disturbed), (control, race.control)]
    for deployment, _ in pairs:
        await deployment.work(jobs)
    for turn in range(windows):
        for deployment, rates in pairs if turn % 2 else reversed(pairs):
            rates.append(jobs / await deployment.work(jobs))
    return race
