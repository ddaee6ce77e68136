"""The pure parts of the comparison with peers: figures and tables."""

import pytest

from eventstore.events import EventRow
from eventstore.ids import new_id
from eventstore.integrity.chain import partition_of
from orchestrator import codec
from orchestrator.events import DomainEvent, JobCreated, StepRetry
from orchestrator.state import JobState, apply
from tests.bench.figures import Spread, percentile, ratios, spread
from tests.bench.filling import EVENTS_PER_JOB, history, new_events, stream_id
from tests.bench.open_load import OpenLoadResult
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
    spread_text,
    sse_table,
    stalls_table,
    table,
    times_table,
)
from tests.bench.results import (
    EMPTY,
    FleetLine,
    GrowthResult,
    GrowthSide,
    HttpLine,
    IdleCost,
    IdleLine,
    JobsResult,
    LogRates,
    MemoryResult,
    MemorySample,
    OverloadResult,
    PooledResult,
    SetupLine,
    SlotsLine,
    SseLine,
    SseTurns,
    StallsLine,
)


def cells(text: str, first: str) -> list[str]:
    """The cells of the row that begins with a name, without that name."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    return next(row[1:] for row in rows if row[0] == first)


@pytest.mark.parametrize(("percent", "expected"), [(0, 1), (50, 50), (99, 99), (99.5, 100), (100, 100)])
def test_a_percentile_is_one_of_the_values(percent: float, expected: float) -> None:
    assert percentile(range(100, 0, -1), percent) == expected


def test_a_percentile_of_few_values_is_the_highest() -> None:
    assert percentile([3.0, 1.0, 2.0], 99) == 3.0


def test_no_values_have_no_percentile_and_no_spread() -> None:
    with pytest.raises(ValueError, match="no values"):
        percentile([], 50)
    assert spread([]) is None


def test_ratios_are_of_the_same_round() -> None:
    assert ratios([10.0, 40.0, 30.0], [10.0, 20.0, 10.0]) == Spread(2.0, 1.0, 3.0)


def test_a_spread_shows_the_median_then_lowest_and_highest() -> None:
    assert spread_text(Spread(2.0, 1.25, 3.0)) == "2.0 (1.2-3.0)"
    assert spread_text(None) == "-"


def test_columns_of_a_table_have_one_width() -> None:
    assert table(["name", "n"], [["a", "1"], ["longer", "100"]]).splitlines() == [
        "| name   |   n |",
        "| :----- | --: |",
        "| a      |   1 |",
        "| longer | 100 |",
    ]


def test_a_contestant_without_a_measurement_has_a_line_without_figures() -> None:
    result = JobsResult()
    result.rates_of("dreamforge", EMPTY)
    result.rates_of("dbos", EMPTY).jobs_per_s.append(50.0)
    assert set(cells(rates_table(result), f"{EMPTY}: dreamforge")) == {"-"}
    assert cells(rates_table(result), f"{EMPTY}: dbos")[:2] == ["50.0 (50.0-50.0)", "-"]


def test_who_was_skipped_is_said_with_the_reason() -> None:
    assert (
        skipped_text(JobsResult(skipped={"celery, redis": "no redis-server"}))
        == "celery, redis: skipped, no redis-server"
    )
    assert not skipped_text(JobsResult())


def test_rates_and_cpu_times_are_medians_of_the_rounds() -> None:
    result = JobsResult()
    ours, theirs = result.rates_of("dreamforge", "count 1"), result.rates_of("dbos", "count 1")
    ours.jobs_per_s += [10.0, 20.0, 30.0]
    theirs.jobs_per_s += [10.0, 10.0, 10.0]
    theirs.cpu += [{"python": value, "postgresql": 1.0} for value in (5.0, 7.0, 6.0)]
    assert cells(rates_table(result), "count 1: dbos") == [
        "10.0 (10.0-10.0)",
        "2.00 (1.00-3.00)",
        "6.0",
        "1.0",
        "-",
        "-",
    ]


def test_times_are_milliseconds() -> None:
    result = JobsResult()
    result.times_of("dreamforge", "its stream").seconds += [0.03] * 4
    result.times_of("dbos", "its handle").seconds += [0.01, 0.02, 0.06]
    assert cells(times_table(result), "dreamforge") == ["30.0", "30.0", "4", "-", "its stream"]
    assert cells(times_table(result), "dbos") == ["20.0", "60.0", "3", "1.50", "its handle"]


def test_http_rates_stand_beside_the_bare_applications() -> None:
    line = HttpLine("POST", 16, ours=[100.0], bare=[400.0], our_seconds=[0.004], bare_seconds=[0.001])
    assert cells(http_table([line]), "POST, 16 client(s)") == [
        "100 (100-100)",
        "400 (400-400)",
        "0.25 (0.25-0.25)",
        *("4.0", "4.0", "1.0", "1.0"),
    ]


def test_stalls_stand_beside_the_gaps_between_heartbeats() -> None:
    line = StallsLine("engine", 10, 90.4, longest_stall=0.0815, heartbeat_gaps=[4.0, 3.5, 4.25])
    assert cells(stalls_table([line]), "10 jobs, rendered in engine") == ["82", "4.00 (3.50-4.25)", "3", "90"]


def test_goodput_is_a_share_of_the_best_rate() -> None:
    answered = OpenLoadResult({"503": 900, "202": 100}, [0.02], [0.001, 0.003], without_retry_after=0, unsent=7)
    shown = overload_table(OverloadResult(40.0, 36.0, answered, latencies=[1.5, 2.5, 9.0], recovered=3.25))
    assert cells(shown, "goodput under overload, jobs/s") == ["36.0 (90%)"]
    assert cells(shown, "answers by status") == ["202: 100, 503: 900"]
    assert cells(shown, "admitted job p50, p99 ms") == ["2500.0, 9000.0"]
    assert cells(shown, "refused without Retry-After; not sent") == ["0; 7"]


def test_a_line_of_streams_compares_percentiles_of_all_rounds() -> None:
    line = SseLine(
        "1 of 1 job",
        ours=SseTurns([0.002, 0.004, 0.006], [100.0, 120.0], received=3, expected=3),
        bare=SseTurns([0.001, 0.002, 0.003], [50.0], received=2, expected=3),
    )
    assert cells(sse_table([line, SseLine("none")]), "1 of 1 job") == [
        *("4.0", "6.0", "2.0", "3.0", "2.00", "2.00"),
        *("110 (100-120)", "50 (50-50)", "3/3", "2/3"),
    ]
    assert cells(sse_table([line, SseLine("none")]), "none")[:6] == ["-"] * 6


def test_an_idle_subscriber_costs_kilobytes_and_microseconds() -> None:
    line = IdleLine(1000, ours=IdleCost(29_800.0, 4.0), bare=IdleCost(24_700.0, 2.0))
    assert cells(idle_table([line]), "1000") == ["29.8", "24.7", "4.0", "2.0"]


def test_a_fleet_is_judged_by_cpu_per_job_and_by_its_starts() -> None:
    cpu = {"postgresql": 12.04, "up": 20.0, "runners": 3.25}
    line = FleetLine(64, frozen=True, jobs=2, cpu=cpu, starts=[0.02, 0.03], burst=[0.1, 0.9], sessions=100)
    shown = cells(fleet_table([line]), "64, those that listen frozen")
    assert shown == ["12.0", "20.0", "3.2", "20.0", "30.0", "900", "100"]


def log_of(events: int, *gets: list[float]) -> GrowthSide:
    """A log with jobs of 15 events, and the seconds of GETs in each turn."""
    return GrowthSide(
        events,
        events // 15,
        log_bytes=events * 600,
        read_model_bytes=events * 200,
        leaves=1,
        append_rate=30_000.0,
        rebuild_rate=50_000.0,
        seconds={"GET": list(gets)},
    )


def test_a_long_log_is_compared_by_the_percentiles_of_each_pair() -> None:
    small, large = log_of(150, [0.001, 0.002], [0.002, 0.004]), log_of(1500, [0.002, 0.003], [0.002, 0.002])
    result = GrowthResult(small, large, slots=[])
    assert cells(growth_table(result), "GET, p50") == ["1.50 (1.00-2.00)", "2.00 (2.00-2.00)", "1.50 (1.00-2.00)"]
    assert cells(growth_table(result), "GET, p99") == ["3.00 (2.00-4.00)", "2.50 (2.00-3.00)", "1.00 (0.50-1.50)"]


def test_a_logs_bytes_are_per_job() -> None:
    shown = size_table(GrowthResult(log_of(150), log_of(1500), slots=[]))
    assert cells(shown, "1,500") == ["100", "9000", "3000", "1", "30000", "50000"]


def test_many_slots_are_compared_with_few_in_the_same_round() -> None:
    shown = slots_table(
        GrowthResult(log_of(150), log_of(1500), [SlotsLine(16, [50.0, 60.0]), SlotsLine(256, [100.0, 90.0])])
    )
    assert cells(shown, "16") == ["55.0 (50.0-60.0)", "-"]
    assert cells(shown, "256") == ["95.0 (90.0-100.0)", "1.75 (1.50-2.00)"]


def folded(bodies: list[DomainEvent]) -> JobState:
    """The state after a history, as it is read from the log."""
    state: JobState | None = None
    job = new_id()
    for version, one in enumerate(new_events(bodies), 1):
        row = EventRow(
            stream_id=job,
            tenant="default",
            version=version,
            code=one.code,
            schema_version=one.schema_version,
            ts=one.ts,
            data=one.data,
            meta=one.meta,
            private=one.private,
        )
        state = apply(state, codec.decode_event(row))
    assert state is not None
    return state


@pytest.mark.parametrize(("number", "retries"), [(1, 0), (20, 1)])
def test_a_log_is_filled_with_jobs_that_succeeded_some_after_a_retry(number: int, retries: int) -> None:
    bodies = history(number)
    assert isinstance(bodies[0], JobCreated)
    assert len(bodies) == EVENTS_PER_JOB + 3 * retries
    assert sum(isinstance(body, StepRetry) for body in bodies) == retries
    state = folded(bodies)
    assert state.outcome == "succeeded"
    assert [len(step.artifacts) for step in state.steps] == [4, 4]


def test_a_filled_job_is_in_its_connections_partition() -> None:
    assert [partition_of(stream_id(partition, 8), 8) for partition in range(8)] == list(range(8))


def test_a_setup_is_compared_by_the_medians_of_each_round() -> None:
    one, four = SetupLine("one", [[0.02, 0.02], [0.04, 0.04]]), SetupLine("four", [[0.03, 0.03], [0.04, 0.05]])
    shown = pooled_table(PooledResult([one, four], skipped="there is no pgbouncer"))
    assert cells(shown, "one") == ["20.0", "40.0", "4", "-"]
    assert cells(shown, "four") == ["30.0", "50.0", "4", "1.25 (1.00-1.50)"]
    assert shown.endswith("with a pooler: skipped, there is no pgbouncer")


def test_memory_is_shown_when_shares_of_the_jobs_have_ended() -> None:
    samples = [MemorySample(float(second), second * 30, (100 + second) * 2**20) for second in range(4)]
    shown = memory_table(MemoryResult(90, samples, verified=810))
    assert cells(shown, "10 %") == ["30", "1", "101.0", "30.0"]
    assert cells(shown, "25 %") == ["30", "1", "101.0", "-"]
    assert cells(shown, "50 %") == ["60", "2", "102.0", "30.0"]
    assert cells(shown, "75 %") == ["90", "3", "103.0", "30.0"]
    assert shown.endswith("810 events are intact")


def test_a_logs_rates_are_compared_with_ours_of_the_same_work() -> None:
    result = LogRates()
    for work, side, per_s, cpu_us in (
        ("append", "dreamforge", [100.0, 300.0], [40.0, 60.0]),
        ("append", "bare", [200.0, 300.0], [20.0, 20.0]),
        ("fold", "dreamforge", [900.0], []),
    ):
        line = result.line(work, side)
        line.per_s += per_s
        line.cpu_us += cpu_us
    shown = log_rates_table(result)
    assert cells(shown, "append: dreamforge") == ["200 (100-300)", "50 (40-60)", "-", "-"]
    assert cells(shown, "append: bare") == ["250 (200-300)", "20 (20-20)", "0.75 (0.50-1.00)", "2.50 (2.00-3.00)"]
    assert cells(shown, "fold: dreamforge") == ["900 (900-900)", "-", "-", "-"]
