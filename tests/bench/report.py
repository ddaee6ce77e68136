"""The tables of a report."""

from collections.abc import Sequence

from tests.bench.figures import Spread, percentile, ratios, spread
from tests.bench.results import (
    EMPTY,
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

NONE = "-"
OURS = "dreamforge"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, with columns of one width: the first to the left, the others to the right."""
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]

    def line(row: Sequence[str]) -> str:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        return f"| {' | '.join(cells)} |"

    rule = [":" + "-" * (widths[0] - 1), *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join(map(line, [head, rule, *rows]))


def spread_text(values: Spread | None, digits: int = 1) -> str:
    """The median, then the lowest and the highest value."""
    if values is None:
        return NONE
    return f"{values.median:.{digits}f} ({values.low:.{digits}f}-{values.high:.{digits}f})"


def rates_table(result: JobsResult) -> str:
    """Part 1."""
    rows, works = [], list(dict.fromkeys(line.work for line in result.rates))
    for work in sorted(works, key=lambda name: name == EMPTY):
        lines = [line for line in result.rates if line.work == work]
        ours = next((line.jobs_per_s for line in lines if line.contestant == OURS), [])
        for line in lines:
            ratio = None if line.contestant == OURS else ratios(ours, line.jobs_per_s)
            cpu = [_median_cpu(line.cpu, group) for group in ("python", "postgresql", "seaweedfs", "redis")]
            rate = spread_text(spread(line.jobs_per_s))
            rows.append([f"{work}: {line.contestant}", rate, spread_text(ratio, 2), *cpu])
    head = ["chained jobs", "jobs/s", "ours/theirs", "CPU ms/job: Python", "PostgreSQL", "SeaweedFS", "Redis"]
    return table(head, rows)


def times_table(result: JobsResult) -> str:
    """Part 2."""
    ours = next((line.seconds for line in result.times if line.contestant == OURS), [])
    rows = []
    for line in result.times:
        middle, late = _milliseconds(line.seconds)
        ratio = NONE
        if ours and line.contestant != OURS:
            ratio = f"{percentile(ours, 50) / percentile(line.seconds, 50):.2f}"
        rows.append([line.contestant, middle, late, str(len(line.seconds)), ratio, line.end])
    return table(["one chained job alone", "p50 ms", "p99 ms", "jobs", "p50 ours/theirs", "its end"], rows)


def skipped_text(result: JobsResult | LogRates) -> str:
    """Who did not take part."""
    return "\n".join(f"{name}: skipped, {reason}" for name, reason in result.skipped.items())


def http_table(lines: Sequence[HttpLine]) -> str:
    """Part 3."""
    rows = [
        [
            f"{line.operation}, {line.clients} client(s)",
            spread_text(spread(line.ours), 0),
            spread_text(spread(line.bare), 0),
            spread_text(ratios(line.ours, line.bare), 2),
            *_milliseconds(line.our_seconds),
            *_milliseconds(line.bare_seconds),
        ]
        for line in lines
    ]
    head = ["HTTP", "ours/s", "bare/s", "ours/bare", "p50 ms", "p99 ms", "bare p50", "bare p99"]
    return table(head, rows)


def stalls_table(lines: Sequence[StallsLine]) -> str:
    """Part 6."""
    rows = [
        [
            f"{line.jobs} jobs, rendered in {line.renderer}",
            f"{line.longest_stall * 1000:.0f}",
            spread_text(spread(line.heartbeat_gaps), 2),
            str(len(line.heartbeat_gaps)),
            f"{line.seconds:.0f}",
        ]
        for line in lines
    ]
    return table(["4000² → 8000², noise", "longest stall ms", "s between heartbeats", "heartbeats", "s in all"], rows)


def overload_table(result: OverloadResult) -> str:
    """Part 7."""
    answers = result.answered
    rows = [
        ["best rate, jobs/s", f"{result.best:.1f}"],
        ["goodput under overload, jobs/s", f"{result.goodput:.1f} ({result.goodput / result.best:.0%})"],
        ["answers by status", ", ".join(f"{status}: {count}" for status, count in sorted(answers.answers.items()))],
        ["refused without Retry-After; not sent", f"{answers.without_retry_after}; {answers.unsent}"],
        ["refusal p50, p99 ms", ", ".join(_milliseconds(answers.refused))],
        ["acceptance p50, p99 ms", ", ".join(_milliseconds(answers.accepted))],
        ["admitted job p50, p99 ms", ", ".join(_milliseconds(result.latencies))],
        ["recovered after s", f"{result.recovered:.1f}"],
    ]
    return table(["overload, ten times the best rate", ""], rows)


def sse_table(lines: Sequence[SseLine]) -> str:
    """Part 4: latencies."""
    rows = [
        [
            line.subscribers,
            *_milliseconds(line.ours.seconds),
            *_milliseconds(line.bare.seconds),
            *_percentile_ratios(line.ours.seconds, line.bare.seconds),
            *(spread_text(spread(side.cpu_us), 0) for side in (line.ours, line.bare)),
            *(f"{side.received}/{side.expected}" for side in (line.ours, line.bare)),
        ]
        for line in lines
    ]
    head = ["commit to SSE, subscribers", "p50 ms", "p99 ms", "bare p50", "bare p99", "p50 ours/bare", "p99 ours/bare"]
    return table([*head, "CPU us/event", "bare", "received", "bare"], rows)


def idle_table(lines: Sequence[IdleLine]) -> str:
    """Part 4: idle subscribers."""
    rows = [
        [
            str(line.subscribers),
            *(f"{side.bytes_each / 1000:.1f}" for side in (line.ours, line.bare)),
            *(f"{side.cpu_us_each_s:.1f}" for side in (line.ours, line.bare)),
        ]
        for line in lines
    ]
    return table(["idle subscribers", "kB each", "bare", "CPU us each a second", "bare"], rows)


def _percentile_ratios(ours: Sequence[float], bare: Sequence[float]) -> list[str]:
    if not (ours and bare):
        return [NONE, NONE]
    return [f"{percentile(ours, percent) / percentile(bare, percent):.2f}" for percent in (50, 99)]


def fleet_table(lines: Sequence[FleetLine]) -> str:
    """Part 8."""
    rows = [
        [
            f"{line.runners}" + (", those that listen frozen" if line.frozen else ""),
            *(f"{line.cpu[group]:.1f}" for group in ("postgresql", "up", "runners")),
            *_milliseconds(line.starts),
            f"{max(line.burst) * 1000:.0f}",
            f"{line.sessions}",
        ]
        for line in lines
    ]
    head = ["further runners of one slot", "CPU ms/job: PostgreSQL", "up", "runners", "start p50 ms", "p99 ms"]
    return table([*head, "slowest of a burst", "sessions"], rows)


def growth_table(result: GrowthResult) -> str:
    """Part 9: what requests take with a short and with a long log, a value for each turn."""
    rows = []
    for operation, small in result.small.seconds.items():
        for percent in (50, 99):
            few, many = (
                [percentile(turn, percent) * 1000 for turn in turns]
                for turns in (small, result.large.seconds[operation])
            )
            rows.append(
                [
                    f"{operation}, p{percent}",
                    spread_text(spread(few), 2),
                    spread_text(spread(many), 2),
                    spread_text(ratios(many, few), 2),
                ]
            )
    sizes = [f"{side.events:,} events, ms" for side in (result.small, result.large)]
    return table(["growth", *sizes, "large/small"], rows)


def size_table(result: GrowthResult) -> str:
    """Part 9: what a log takes, and how fast it was filled."""
    rows = [
        [
            f"{side.events:,}",
            f"{side.jobs:,}",
            f"{side.log_bytes / side.jobs:.0f}",
            f"{side.read_model_bytes / side.jobs:.0f}",
            str(side.leaves),
            f"{side.append_rate:.0f}",
            f"{side.rebuild_rate:.0f}",
        ]
        for side in (result.small, result.large)
    ]
    head = ["events", "jobs", "log bytes/job", "read model bytes/job", "leaves", "appended/s", "rebuilt/s"]
    return table(head, rows)


def slots_table(result: GrowthResult) -> str:
    """Part 9: the rate with few and with many slots."""
    few = result.slots[0]
    rows = [
        [
            str(line.slots),
            spread_text(spread(line.jobs_per_s)),
            NONE if line is few else spread_text(ratios(line.jobs_per_s, few.jobs_per_s), 2),
        ]
        for line in result.slots
    ]
    return table(["slots", "jobs/s", f"to {few.slots} slots"], rows)


def pooled_table(result: PooledResult) -> str:
    """Part 10: percentiles of all rounds together; ratios of the medians of each round."""
    single = result.lines[0]
    rows = []
    for line in result.lines:
        medians, others = ([percentile(turn, 50) for turn in one.seconds] for one in (line, single))
        ratio = NONE if line is single else spread_text(ratios(medians, others), 2)
        seconds = [value for turn in line.seconds for value in turn]
        rows.append([line.setup, *_milliseconds(seconds), str(len(seconds)), ratio])
    shown = table(["one chained job alone", "p50 ms", "p99 ms", "jobs", f"p50 to {single.setup}"], rows)
    return shown if result.skipped is None else f"{shown}\n\nwith a pooler: skipped, {result.skipped}"


def memory_table(result: MemoryResult) -> str:
    """Part 11: resident memory when so many jobs had ended, and the rate since the line above."""
    rows, before = [], result.samples[0]
    for percent in (10, 25, 50, 75, 100):
        sample = result.reached(percent / 100)
        seconds = sample.seconds - before.seconds
        rate = f"{(sample.jobs - before.jobs) / seconds:.1f}" if seconds else NONE
        rows.append([f"{percent} %", f"{sample.jobs:,}", f"{sample.seconds:.0f}", f"{sample.rss / 2**20:.1f}", rate])
        before = sample
    head = ["jobs that have ended", "", "after s", "resident MiB", "jobs/s"]
    return f"{table(head, rows)}\n\naudit verify --all: {result.verified:,} events are intact"


def log_rates_table(result: LogRates) -> str:
    """Part 12: ours is the first line of each kind of work."""
    rows = []
    for line in result.lines:
        ours = next(one for one in result.lines if one.work == line.work)
        rates, cpu = ([], []) if line is ours else (ours.per_s, ours.cpu_us)
        shares = [spread_text(ratios(*pair), 2) for pair in ((rates, line.per_s), (cpu, line.cpu_us))]
        row = [spread_text(spread(values), 0) for values in (line.per_s, line.cpu_us)]
        rows.append([f"{line.work}: {line.side}", *row, *shares])
    return table(["rates of the log", "events/s", "PostgreSQL us/event", "rate ours/theirs", "CPU ours/theirs"], rows)


def _median_cpu(rounds: Sequence[dict[str, float]], group: str) -> str:
    found = spread([values[group] for values in rounds if group in values])
    return NONE if found is None else f"{found.median:.1f}"


def _milliseconds(seconds: Sequence[float]) -> list[str]:
    """The median and the 99th percentile."""
    if not seconds:
        return [NONE, NONE]
    return [f"{percentile(seconds, percent) * 1000:.1f}" for percent in (50, 99)]
