"""Measures Dream Forge and its peers in turns, and prints tables: see README.md."""

import argparse
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from tests.bench.contestants import CONTESTANTS
from tests.bench.fleet_part import FleetPart, FleetSize
from tests.bench.growth_part import GrowthPart, GrowthSize
from tests.bench.http_part import HttpPart, HttpSize
from tests.bench.jobs import JobsPart, Say, Size
from tests.bench.memory_part import MemoryPart, MemorySize
from tests.bench.overload_part import OverloadPart, OverloadSize
from tests.bench.pooled_part import PooledPart, PooledSize
from tests.bench.rates_part import RatesPart, RatesSize
from tests.bench.report import (
    fleet_table,
    growth_table,
    http_table,
    idle_table,
    log_rates_table,
    memory_table,
    overload_table,
    pooled_table,
    rates_table,
    size_table,
    skipped_text,
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
    LogRates,
    MemoryResult,
    OverloadResult,
    PooledResult,
    SseLine,
    StallsLine,
)
from tests.bench.sse_part import SsePart, SseSize
from tests.bench.stack import Stack, describe_machine, started
from tests.bench.stalls_part import StallsPart


class _Sizes(msgspec.Struct, frozen=True):
    """How much to measure of each part. stalls: jobs."""

    jobs: Size
    http: HttpSize
    sse: SseSize
    stalls: int
    overload: OverloadSize
    fleet: FleetSize
    growth: GrowthSize
    pooled: PooledSize
    memory: MemorySize
    rates: RatesSize


_QUICK = _Sizes(
    jobs=Size(rounds=3, jobs={1: 60}, empty_jobs=100, alone=40),
    http=HttpSize(rounds=3, seconds=0.5),
    sse=SseSize(rounds=2, seconds=3.0, idle=(1000,)),
    stalls=10,
    overload=OverloadSize(best_jobs=600, seconds=300.0),
    fleet=FleetSize(runners=(0, 16), stubs=0, rate=20.0, seconds=6.0, burst=64),
    growth=GrowthSize(small=10_000, large=200_000, pairs=2, reads=200, alone=20, slots_rounds=1, slots_jobs=60),
    pooled=PooledSize(rounds=2, alone=40),
    memory=MemorySize(jobs=2000, outstanding=64, every_s=0.5),
    rates=RatesSize(rounds=2, seconds=1, jobs=700, histories=300),
)
_FULL = _Sizes(
    jobs=Size(rounds=5, jobs={1: 500, 10: 50}, empty_jobs=1000, alone=200),
    http=HttpSize(rounds=5, seconds=5.0),
    sse=SseSize(rounds=3, seconds=20.0, idle=(1000, 10_000)),
    stalls=10,
    overload=OverloadSize(best_jobs=600, seconds=300.0),
    fleet=FleetSize(runners=(0, 16, 64), stubs=256, rate=20.0, seconds=30.0, burst=64),
    growth=GrowthSize(small=10_000, large=10_000_000, pairs=6, reads=1000, alone=100, slots_rounds=5, slots_jobs=500),
    pooled=PooledSize(rounds=5, alone=200),
    memory=MemorySize(jobs=100_000, outstanding=64, every_s=5.0),
    rates=RatesSize(rounds=5, seconds=5, jobs=20_000, histories=5000),
)
_PARTS = _Sizes.__struct_fields__
_QUICK_PARTS = ("jobs", "http")
_TABLES: Mapping[str, tuple[Callable[[Any], str], ...]] = {
    "jobs": (rates_table, times_table, skipped_text),
    "http": (http_table,),
    "sse": (sse_table,),
    "idle": (idle_table,),
    "stalls": (stalls_table,),
    "overload": (overload_table,),
    "fleet": (fleet_table,),
    "growth": (growth_table, size_table, slots_table),
    "pooled": (pooled_table,),
    "memory": (memory_table,),
    "rates": (log_rates_table, skipped_text),
}
"""The tables of each result, by its field in the report."""


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
    memory: MemoryResult | None = None
    rates: LogRates | None = None


def _show(report: Report) -> None:
    machine = report.machine
    print(f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, {machine['file_system']}")
    postgresql = ", ".join(f"{name} {value}" for name, value in machine["postgresql"].items())
    print(f"{machine['system']}, Python {machine['python']}, PostgreSQL: {postgresql}")
    print(f"load average at the start {machine['load_average']}")
    print(", ".join(f"{name} {version}" for name, version in machine["versions"].items()), machine["redis"] or "")
    print("\nMedian (lowest-highest) of the rounds; ratios are of the same round.\n")
    for name, tables in _TABLES.items():
        if (found := getattr(report, name)) is not None:
            print(*filter(None, (shown(found) for shown in tables)), sep="\n\n", end="\n\n")
    print(f"{report.seconds:.0f} s in all")


def _measurements(stack: Stack, size: _Sizes, say: Say, only: list[str]) -> dict[str, Callable[[], Any]]:
    """What measures each part, by its name."""
    return {
        "jobs": JobsPart(stack, size.jobs, say, only).run,
        "http": HttpPart(stack, size.http, say).run,
        "sse": SsePart(stack, size.sse, say).run,
        "stalls": StallsPart(stack, size.stalls, say).run,
        "overload": OverloadPart(stack, size.overload, say).run,
        "fleet": FleetPart(stack, size.fleet, say).run,
        "growth": GrowthPart(stack, size.growth, say).run,
        "pooled": PooledPart(stack, size.pooled, say).run,
        "memory": MemoryPart(stack, size.memory, say).run,
        "rates": RatesPart(stack, size.rates, say).run,
    }


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
        measurements = _measurements(stack, _QUICK if args.quick else _FULL, say, args.only)
        for name in _PARTS:
            if name not in parts:
                continue
            found = measurements[name]()
            if name == "sse":
                report.sse, report.idle = found
            else:
                setattr(report, name, found)
            report.seconds = time.monotonic() - began
            args.output.write_bytes(msgspec.json.format(msgspec.json.encode(report)))
    _show(report)


if __name__ == "__main__":
    main()
