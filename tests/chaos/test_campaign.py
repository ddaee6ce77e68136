"""The short form of `make chaos`: everything breaks at once, and afterwards it is as if nothing had been."""

from pathlib import Path

from tests.chaos.campaign import run
from tests.chaos.deployment import Scale
from tests.chaos.disturbances import DISTURBANCES

JOBS = 50
TROUBLED_S = 20
SCALE = Scale(shape={"api": 1, "orchestrator": 2, "projector": 1, "runner": 2}, clients=10)


async def test_jobs_outlive_everything_that_can_break_at_once(tmp_path: Path) -> None:
    """Given restarts, kills, freezes and a stranger in every slot, then each job ended once, and nothing is left over.

    On a failure the processes' logs lie in the test's folder.
    """
    outcome = await run("all", JOBS, SCALE, tmp_path, longest_s=TROUBLED_S)
    assert outcome.flaws == [], f"see the logs in {tmp_path}"
    assert outcome.findings.jobs >= JOBS
    assert outcome.findings.failed == 0
    assert outcome.hits.keys() <= DISTURBANCES.keys()
