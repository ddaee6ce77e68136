"""The client of part 12, a process of its own: appends to a log, or reads it."""

import sys
import time
from collections.abc import Awaitable

import msgspec
import uvloop

from tests.bench.log_sides import BareTable, EventsourcingLog, OurLog

SIDES = {"ours": OurLog, "bare": BareTable, "eventsourcing": EventsourcingLog}


class LogLoad(msgspec.Struct, frozen=True):
    """What to do, with the method's arguments: a name of `SIDES`, and a method."""

    side: str
    method: str
    db_url: str
    arguments: list[int | float] = []


class LogLoadResult(msgspec.Struct, frozen=True):
    """Events, and the seconds that they took."""

    events: int
    seconds: float


async def run(load: LogLoad) -> LogLoadResult:
    """Run a method; it may measure its own time."""
    began = time.perf_counter()
    work: Awaitable[int | tuple[int, float]] = getattr(SIDES[load.side](load.db_url), load.method)(*load.arguments)
    found = await work
    if isinstance(found, tuple):
        return LogLoadResult(*found)
    return LogLoadResult(found, time.perf_counter() - began)


def _main() -> None:
    for line in sys.stdin:
        result = uvloop.run(run(msgspec.json.decode(line, type=LogLoad)))
        sys.stdout.write(msgspec.json.encode(result).decode() + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _main()
