"""Runs the simulation: `python -m tests.simulation --steps 1000000`, or one episode with `--seed`."""

import argparse
import secrets
import time
from collections import Counter

from tests.simulation.episode import NO_BUGS, Episode, Parts


def simulate(steps: int, first: int, parts: Parts = NO_BUGS) -> Counter[str]:
    """Run episodes with seeds from `first` on, for at least `steps` steps. Returns counts of what happened."""
    counts: Counter[str] = Counter()
    while counts["steps"] < steps:
        counts += Episode(first + counts["episodes"], parts).run()
    return counts


def main() -> None:
    """Run the episodes that the command line selects, and print the counts."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--steps", type=int, default=1_000_000, help="how many effects to have, at least")
    parser.add_argument("--first", type=int, default=secrets.randbelow(2**32), help="the first episode's seed")
    parser.add_argument("--seed", type=int, help="replay this one episode")
    given = parser.parse_args()
    if given.seed is not None:
        print_line(summary(Episode(given.seed).run()))
        return
    began = time.perf_counter()
    print_line(f"first seed {given.first}")
    counts = simulate(given.steps, given.first)
    seconds = time.perf_counter() - began
    print_line(f"{counts['steps']} steps in {seconds:.0f} s, {counts['steps'] / seconds:.0f} a second; no violation")
    print_line(summary(counts))


def print_line(line: str) -> None:
    """Print a line at once."""
    print(line, flush=True)  # noqa: T201  # its report


def summary(counts: Counter[str]) -> str:
    """The counts, in one line."""
    return ", ".join(f"{count} {what}" for what, count in counts.most_common())


if __name__ == "__main__":
    main()
