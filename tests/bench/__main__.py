"""Measures Dream Forge and its peers in turns, and prints tables: see README.md."""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import msgspec

from tests.bench.contestants import CONTESTANTS
from tests.bench.fleet_part import FleetPart, FleetSize
from tests.bench.growth_part import GrowthPart, GrowthSize
from tests.bench.http_part import HttpPart, HttpSize
from tests.bench.jobs import JobsPart, Size
from tests.bench.overload_part import OverloadPart, OverloadSize
from tests.bench.pooled_part import PooledPart, PooledSize
from tests.bench.report import (
    fleet_table,
    growth_table,
    http_table,
    idle_table,
    overload_table,
    pooled_table,
    rates_table,
    size_table,
    slots_table,
    sse_table,
    stalls_table,
    times_table,
)
from tests.bench.results import (
    FleetLine,
    GrowthResult,
    HttpLine,
    IdleLine,
    JobsResult,
    OverloadResult,
    PooledResult,
    SseLine,
    StallsLine,
)
from tests.bench.sse_part import SsePart, SseSize
from tests.bench.stack import describe_machine, started
from tests.bench.stalls_part import StallsPart

_QUICK = Size(rounds=3, jobs={1: 60}, empty_jobs=100, alone=40)
_FULL = Size(rounds=5, jobs={1: 500, 10: 50}, empty_jobs=1000, alone=200)
_QUICK_HTTP = HttpSize(rounds=3, seconds=0.5)
_FULL_HTTP = HttpSize(rounds=5, seconds=5.0)
_QUICK_SSE = SseSize(rounds=2, seconds=3.0, idle=(1000,))
_FULL_SSE = SseSize(rounds=3, seconds=20.0, idle=(1000, 10_000))
_STALLS_JOBS = 10
_OVERLOAD = OverloadSize(best_jobs=600, seconds=300.0)
_QUICK_FLEET = FleetSize(runners=(0, 16), rate=20.0, seconds=6.0, burst=64)
_FULL_FLEET = FleetSize(runners=(0, 16, 64), rate=20.0, seconds=30.0, burst=64)
_QUICK_GROWTH = GrowthSize(small=10_000, large=200_000, pairs=2, reads=200, alone=20, slots_rounds=1, slots_jobs=60)
_FULL_GROWTH = GrowthSize(
    small=10_000, large=10_000_000, pairs=6, reads=1000, alone=100, slots_rounds=5, slots_jobs=500
)
_QUICK_POOLED = PooledSize(rounds=2, alone=40)
_FULL_POOLED = PooledSize(rounds=5, alone=200)
_QUICK_PARTS = ("jobs", "http")
_PARTS = (*_QUICK_PARTS, "sse", "stalls", "overload", "fleet", "growth", "pooled")


class Report(msgspec.Struct):
    """What is written to the file: every value, of every round."""

    machine: dict[str, Any]
    quick: bool
    seconds: float
    jobs: JobsResult | None = None
    http: list[HttpLine] | None = None
    sse: list[SseLine] | None = None
    idle: list[IdleLine] | None = None
    stalls: list[StallsLine] | None = None
    overload: OverloadResult | None = None
    fleet: list[FleetLine] | None = None
    growth: GrowthResult | None = None
    pooled: PooledResult | None = None


def _show(report: Report) -> None:
    machine = report.machine
    print(f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, {machine['file_system']}")
    postgresql = ", ".join(f"{name} {value}" for name, value in machine["postgresql"].items())
    print(f"{machine['system']}, Python {machine['python']}, PostgreSQL: {postgresql}")
    print(f"load average at the start {machine['load_average']}")
    print(", ".join(f"{name} {version}" for name, version in machine["versions"].items()), machine["redis"] or "")
    print("\nMedian (lowest-highest) of the rounds; ratios are of the same round.\n")
    if report.jobs is not None:
        print(rates_table(report.jobs), times_table(report.jobs), sep="\n\n", end="\n\n")
        for name, reason in report.jobs.skipped.items():
            print(f"{name}: skipped, {reason}\n")
    if report.http is not None:
        print(http_table(report.http), end="\n\n")
    if report.sse is not None and report.idle is not None:
        print(sse_table(report.sse), idle_table(report.idle), sep="\n\n", end="\n\n")
    if report.stalls is not None:
        print(stalls_table(report.stalls), end="\n\n")
    if report.overload is not None:
        print(overload_table(report.overload), end="\n\n")
    if report.fleet is not None:
        print(fleet_table(report.fleet), end="\n\n")
    if report.growth is not None:
        growth = report.growth
        print(growth_table(growth), size_table(growth), slots_table(growth.slots), sep="\n\n", end="\n\n")
    if report.pooled is not None:
        print(pooled_table(report.pooled), end="\n\n")
    print(f"\n{report.seconds:.0f} s in all")


def main() -> None:
    """Measure as the command line asks."""
    parser = argparse.ArgumentParser(prog="tests.bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer jobs and rounds: minutes")
    parser.add_argument("--output", type=Path, default=Path("bench-results.json"), help="the file for all values")
    parser.add_argument("--part", choices=_PARTS, action="append", help="measure this part only")
    names = [one.name for one in CONTESTANTS]
    parser.add_argument("--only", choices=names, action="append", default=[], help="compare only these")
    args = parser.parse_args()
    began = time.monotonic()

    def say(line: str) -> None:
        print(f"{time.monotonic() - began:5.0f} s  {line}", file=sys.stderr, flush=True)

    parts = args.part or (_QUICK_PARTS if args.quick else _PARTS)
    with started() as stack:
        report = Report(describe_machine(stack), args.quick, 0.0)
        if "jobs" in parts:
            report.jobs = JobsPart(stack, _QUICK if args.quick else _FULL, say, args.only).run()
        if "http" in parts:
            report.http = HttpPart(stack, _QUICK_HTTP if args.quick else _FULL_HTTP, say).run()
        if "sse" in parts:
            report.sse, report.idle = SsePart(stack, _QUICK_SSE if args.quick else _FULL_SSE, say).run()
        if "stalls" in parts:
            report.stalls = StallsPart(stack, _STALLS_JOBS, say).run()
        if "overload" in parts:
            report.overload = OverloadPart(stack, _OVERLOAD, say).run()
        if "fleet" in parts:
            report.fleet = FleetPart(stack, _QUICK_FLEET if args.quick else _FULL_FLEET, say).run()
        if "growth" in parts:
            report.growth = GrowthPart(stack, _QUICK_GROWTH if args.quick else _FULL_GROWTH, say).run()
        if "pooled" in parts:
            report.pooled = PooledPart(stack, _QUICK_POOLED if args.quick else _FULL_POOLED, say).run()
    report.seconds = time.monotonic() - began
    args.output.write_bytes(msgspec.json.format(msgspec.json.encode(report)))
    _show(report)


if __name__ == "__main__":
    main()
