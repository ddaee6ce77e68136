"""Runs the simulation: `python -m tests.simulation --steps 1000000`, or one episode with `--seed`."""

import argparse
import secrets
import time
from collections import Counter

from tests.simulation.episode import SOUND, Episode, Parts


def simulate(steps: int, first: int, parts: Parts = SOUND) -> Counter[str]:
    """Run episodes with the seeds from `first` on, until there were so many steps; answers what happened."""
    figures: Counter[str] = Counter()
    while figures["steps"] < steps:
        figures += Episode(first + figures["episodes"], parts).run()
    return figures


def main() -> None:
    """Run what the command line asks for, and tell what happened."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--steps", type=int, default=1_000_000, help="how many effects to have, at least")
    parser.add_argument("--first", type=int, default=secrets.randbelow(2**32), help="the first episode's seed")
    parser.add_argument("--seed", type=int, help="replay this one episode")
    given = parser.parse_args()
    if given.seed is not None:
        say(told(Episode(given.seed).run()))
        return
    began = time.perf_counter()
    say(f"first seed {given.first}")
    figures = simulate(given.steps, given.first)
    seconds = time.perf_counter() - began
    say(f"{figures['steps']} steps in {seconds:.0f} s, {figures['steps'] / seconds:.0f} a second; no violation")
    say(told(figures))


def say(line: str) -> None:
    """Tell whoever started it."""
    print(line, flush=True)  # noqa: T201  # its report


def told(figures: Counter[str]) -> str:
    """What happened, in a line."""
    return ", ".join(f"{count} {what}" for what, count in figures.most_common())


if __name__ == "__main__":
    main()
