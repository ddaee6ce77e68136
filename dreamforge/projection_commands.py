"""What `dreamforge projections` does and answers."""

import argparse
import asyncio
import time
from collections.abc import Callable, Sequence

import msgspec
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from dreamforge import logs
from dreamforge.backends import ask_database
from dreamforge.console import FAILED, OK, UNAVAILABLE, complain, print_answer
from dreamforge.embedded import EmbeddedError
from dreamforge.settings import Settings
from eventstore.database import Database
from eventstore.errors import EventStoreError
from projections.agreement import Agreement, Disagreement
from projections.standing import Standing, standings


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """A projection in one partition. lag: events that wait, and for how long; rate: events a second while watched."""

    projection: str
    partition: int
    position: int
    head: int
    lag: int
    lag_s: float | None
    rate: float


class Verified(msgspec.Struct, frozen=True, kw_only=True):
    """How many jobs were compared, how many disagree, and the first of those."""

    jobs: int
    wrong: int
    disagreements: list[Disagreement]


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Run one command; returns the exit code."""
    logs.configure("warning", settings.log_format)
    commands: dict[str, Callable[[argparse.Namespace, Settings], int]] = {"status": _status, "verify": _verify}
    try:
        return commands[args.action](args, settings)
    except (EmbeddedError, EventStoreError) as error:
        return complain(UNAVAILABLE, str(error))


def _status(args: argparse.Namespace, settings: Settings) -> int:
    async def watch(database: Database, _actor: str) -> list[Place]:
        before, began = await standings(database), time.monotonic()
        await asyncio.sleep(args.seconds)
        after = await standings(database)
        return _places(before, after, time.monotonic() - began)

    found = ask_database(settings, "projections", watch)
    print_answer(args.output, found, _status_table(found))
    return OK


def _places(before: Sequence[Standing], after: Sequence[Standing], seconds: float) -> list[Place]:
    earlier = {(one.projection, one.partition): one.position for one in before}
    return [
        Place(
            projection=one.projection,
            partition=one.partition,
            position=one.position,
            head=one.head,
            lag=one.lag,
            lag_s=one.lag_s,
            rate=(one.position - earlier.get((one.projection, one.partition), one.position)) / seconds,
        )
        for one in after
    ]


def _verify(args: argparse.Namespace, settings: Settings) -> int:
    async def verify(database: Database, _actor: str) -> Verified:
        agreement = Agreement(database)
        jobs = 0
        found: list[Disagreement] = []
        async for page in agreement.pages():
            jobs += len(page)
            found += await agreement.check(page)
        found += await agreement.orphans()
        return Verified(jobs=jobs, wrong=len(found), disagreements=found[: args.first])

    found = ask_database(settings, "projections", verify)
    print_answer(args.output, found, _verdict(found))
    return FAILED if found.wrong else OK


def _status_table(places: Sequence[Place]) -> Table:
    table = Table("PROJECTION", "PARTITION", "POSITION", "HEAD", "LAG", "WAITING", "EVENTS/S", box=None)
    for one in places:
        waiting = "-" if one.lag_s is None else f"{one.lag_s:.1f} s"
        numbers = (one.partition, one.position, one.head, one.lag)
        table.add_row(one.projection, *map(str, numbers), waiting, f"{one.rate:.0f}")
    return table


def _verdict(found: Verified) -> RenderableType:
    if not found.wrong:
        return f"The read model agrees with the log: {found.jobs:,} job(s)."
    table = Table("JOB", "PROBLEM", "PLACE", "LOG", "READ MODEL", box=None)
    for one in found.disagreements:
        table.add_row(str(one.job_id), one.problem)
        for place in one.differences:
            table.add_row("", "", *map(escape, (place.path, str(place.before), str(place.after))))
    return Group(table, "", f"{found.wrong:,} of {found.jobs:,} job(s) disagree.")
