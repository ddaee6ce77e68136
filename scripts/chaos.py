"""Is anything lost, done twice or slow for good, whatever breaks while thousands of chained jobs run?

Each campaign has databases, an object store and processes of its own. It breaks one thing again and again (the last
campaign everything at once) until all jobs are submitted and a little longer, waits for the last job's end, and judges
what is left by the database and the store alone. Then windows of work alternate with those of an undisturbed service.

Each campaign appends a line to the results file; one that stands there with as many jobs is not run again.
"""

import argparse
import asyncio
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

import msgspec

from dreamforge import logs
from tests.chaos import campaign
from tests.chaos.campaign import CAMPAIGNS, Outcome
from tests.chaos.deployment import Scale
from tests.chaos.final_state import CHECKS

SCALE = Scale(shape={"api": 2, "orchestrator": 2, "projector": 2, "runner": 4}, clients=32)
HEAD = [
    "campaign",
    "done to it",
    "jobs",
    "seconds",
    "failed",
    "attempts",
    "of one step",
    "retries",
    "fenced off",
    *CHECKS,
]
RATES = ["jobs/s afterwards", "control"]


def row(outcome: Outcome) -> list[str]:
    """A campaign's line of the table."""
    findings = outcome.findings
    rates = ["", ""]
    if outcome.race is not None:
        pair = (outcome.race.disturbed, outcome.race.control)
        rates = [f"{statistics.median(one):.1f} ± {campaign.spread(one):.1f}" for one in pair]
        rates[0] += "" if outcome.race.recovered else " (slower)"
    return [
        outcome.name,
        ", ".join(f"{name} {n}" for name, n in outcome.hits.items()),
        *map(str, (findings.jobs, round(outcome.wall_s), findings.failed)),
        *map(str, (findings.attempts, findings.most_attempts, findings.retries)),
        str(outcome.complaints.get("fenced off", 0)),
        *(f"{len(findings.wrong[check])} wrong" if findings.wrong[check] else "ok" for check in CHECKS),
        *rates,
    ]


def line(cells: list[str]) -> str:
    """A line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def read(results: Path) -> dict[tuple[str, int], Outcome]:
    """What the results file holds, by campaign and number of jobs; the newest of each."""
    if not results.exists():
        return {}
    outcomes = [msgspec.json.decode(text, type=Outcome) for text in results.read_bytes().splitlines()]
    return {(outcome.name, outcome.jobs): outcome for outcome in outcomes}


def run(name: str, args: argparse.Namespace) -> Outcome:
    """Run a campaign and tell what came of it. Its home is removed, unless something is wrong."""
    home = Path(tempfile.mkdtemp(prefix=f"chaos-{name}-"))
    _say(f"{name}: {args.jobs} jobs, all data and logs in {home}")
    work = campaign.run(name, args.jobs, SCALE, home, windows=args.windows, window=args.window)
    outcome = asyncio.run(work)
    _say(line(row(outcome)))
    _say(f"{name}: logged {outcome.complaints}")
    if not outcome.flaws:
        shutil.rmtree(home)
    for flaw in outcome.flaws:
        _say(f"{name}: {flaw} (see {home})")
    return outcome


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201  # the command's answer


def main() -> int:
    """Run the campaigns that are still to be run, and print the table of all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=2000, help="chained jobs of each campaign (2000)")
    parser.add_argument("--only", choices=["", *CAMPAIGNS], default="", help="one campaign alone")
    parser.add_argument("--windows", type=int, default=10, help="windows of work afterwards, for each of the two (10)")
    parser.add_argument("--window", type=int, default=80, help="jobs of each window (80)")
    parser.add_argument("--restart", action="store_true", help="run again what was run before")
    parser.add_argument("--results", type=Path, default=Path("chaos-results.jsonl"), help="where the outcomes go")
    args = parser.parse_args()
    logs.configure_logging("warning", "auto")
    known = {} if args.restart else read(args.results)
    names = [args.only] if args.only else list(CAMPAIGNS)
    outcomes = []
    for name in names:
        outcome = known.get((name, args.jobs)) or run(name, args)
        if (name, args.jobs) not in known:
            with args.results.open("ab") as file:
                file.write(msgspec.json.encode(outcome) + b"\n")
        outcomes.append(outcome)
    _say(
        "\n".join(
            ["", line([*HEAD, *RATES]), line(["---"] * len([*HEAD, *RATES])), *(line(row(one)) for one in outcomes)]
        )
    )
    return 1 if any(outcome.flaws for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
