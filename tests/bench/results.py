"""What the parts measure: every value, of every round."""

import msgspec

from tests.bench.open_load import OpenLoadResult

EMPTY = "empty steps"
"""The work of jobs whose steps do nothing."""


class Rates(msgspec.Struct):
    """One line of part 1, a value for each round. cpu: milliseconds per job, by group of processes."""

    contestant: str
    work: str
    jobs_per_s: list[float] = []
    cpu: list[dict[str, float]] = []


class Times(msgspec.Struct):
    """One line of part 2: the seconds of each job. end: how a job's end is known."""

    contestant: str
    end: str
    seconds: list[float] = []


class JobsResult(msgspec.Struct):
    """Parts 1 and 2. skipped: who did not take part, with the reason."""

    rates: list[Rates] = []
    times: list[Times] = []
    skipped: dict[str, str] = {}

    def rates_of(self, contestant: str, work: str) -> Rates:
        """A line of part 1, which is new if there is none yet."""
        for line in self.rates:
            if (line.contestant, line.work) == (contestant, work):
                return line
        self.rates.append(Rates(contestant, work))
        return self.rates[-1]

    def times_of(self, contestant: str, end: str) -> Times:
        """A line of part 2, likewise."""
        for line in self.times:
            if line.contestant == contestant:
                return line
        self.times.append(Times(contestant, end))
        return self.times[-1]


class HttpLine(msgspec.Struct):
    """An operation with so many clients: requests a second in each round, and seconds of requests."""

    operation: str
    clients: int
    ours: list[float] = []
    bare: list[float] = []
    our_seconds: list[float] = []
    bare_seconds: list[float] = []


class StallsLine(msgspec.Struct):
    """Part 6: seconds. longest_stall: of the event loop. heartbeat_gaps: between two heartbeats of a claimed step."""

    renderer: str
    jobs: int
    seconds: float
    longest_stall: float
    heartbeat_gaps: list[float]


class OverloadResult(msgspec.Struct):
    """Part 7. best, goodput: jobs/s. latencies: of admitted jobs, in seconds. recovered: seconds after the load."""

    best: float
    goodput: float
    answered: OpenLoadResult
    latencies: list[float]
    recovered: float


class SseTurns(msgspec.Struct):
    """One side of a line of part 4. seconds: from a commit to an event's arrival; cpu_us: of the server, for each.

    late: publications that began an interval too late. expected: events that readers should have got meanwhile.
    """

    seconds: list[float] = []
    cpu_us: list[float] = []
    late: int = 0
    received: int = 0
    expected: int = 0


class SseLine(msgspec.Struct):
    """So many subscribers of so many jobs, as `subscribers` says."""

    subscribers: str
    ours: SseTurns = msgspec.field(default_factory=SseTurns)
    bare: SseTurns = msgspec.field(default_factory=SseTurns)


class IdleCost(msgspec.Struct):
    """What an idle subscriber costs the server: resident memory, and microseconds of CPU time a second."""

    bytes_each: float = 0.0
    cpu_us_each_s: float = 0.0


class IdleLine(msgspec.Struct):
    """So many idle subscribers."""

    subscribers: int
    ours: IdleCost = msgspec.field(default_factory=IdleCost)
    bare: IdleCost = msgspec.field(default_factory=IdleCost)


class FleetLine(msgspec.Struct):
    """Part 8. runners: beside `dreamforge up`. cpu: ms per job, by group. starts, burst: seconds until the start.

    sessions: of the database, with those of `dreamforge up`.
    """

    runners: int
    frozen: bool
    jobs: int
    cpu: dict[str, float]
    starts: list[float]
    burst: list[float]
    sessions: int


class GrowthSide(msgspec.Struct):
    """Part 9: a log. bytes: of a schema, with indexes. append_rate, rebuild_rate: events a second while it was filled.

    seconds: by operation, of each turn.
    """

    events: int
    jobs: int
    log_bytes: int
    read_model_bytes: int
    leaves: int
    append_rate: float
    rebuild_rate: float
    seconds: dict[str, list[list[float]]] = {}


class SlotsLine(msgspec.Struct):
    """Part 9: jobs a second in each round, with so many slots."""

    slots: int
    jobs_per_s: list[float] = []


class GrowthResult(msgspec.Struct):
    """Part 9."""

    small: GrowthSide
    large: GrowthSide
    slots: list[SlotsLine]


class SetupLine(msgspec.Struct):
    """Part 10: the seconds of each lone job, by round."""

    setup: str
    seconds: list[list[float]] = []


class PooledResult(msgspec.Struct):
    """Part 10. skipped: why there is no line with a pooler."""

    lines: list[SetupLine]
    skipped: str | None = None


class MemorySample(msgspec.Struct, frozen=True):
    """Part 11: the resident memory in bytes, when so many jobs had ended, so many seconds after the first POST."""

    seconds: float
    jobs: int
    rss: int


class MemoryResult(msgspec.Struct):
    """Part 11. verified: events that `audit verify --all` found intact."""

    jobs: int
    samples: list[MemorySample]
    verified: int

    def reached(self, share: float) -> MemorySample:
        """The first sample with this share of the jobs."""
        return next(sample for sample in self.samples if sample.jobs >= share * self.jobs)


class LogRatesLine(msgspec.Struct):
    """Part 12: events a second in each round, and PostgreSQL's microseconds of CPU time for each event."""

    work: str
    side: str
    per_s: list[float] = []
    cpu_us: list[float] = []


class LogRates(msgspec.Struct):
    """Part 12. skipped: who did not take part, with the reason."""

    lines: list[LogRatesLine] = []
    skipped: dict[str, str] = {}

    def line(self, work: str, side: str) -> LogRatesLine:
        """A line, which is new if there is none yet."""
        for line in self.lines:
            if (line.work, line.side) == (work, side):
                return line
        self.lines.append(LogRatesLine(work, side))
        return self.lines[-1]
