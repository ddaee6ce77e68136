"""What `dreamforge projections` does and answers."""

import argparse
import asyncio
import os
import time
from collections.abc import Sequence

import msgspec
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from dreamforge.backends import ask_database
from dreamforge.cli import arguments
from dreamforge.cli import rebuild as rebuilds
from dreamforge.cli.console import CONFLICT, FAILED, OK, complain, print_answer
from dreamforge.cli.handlers import set_handlers
from dreamforge.settings import Settings
from eventstore.database import Database
from projections.projector import LIVE
from projections.rebuild import ReadModelState, Rebuild, RebuildFailed
from projections.subscription_status import SubscriptionStatus, subscription_statuses
from projections.verifier import Disagreement, ReadModelVerifier


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `dreamforge projections`."""
    actions = arguments.subcommands(parser)
    output = arguments.output_option(json_alias=True)

    status = actions.add_parser("status", parents=[output], help="each projection's place, lag and rate, by partition")
    status.add_argument(
        "--seconds", type=arguments.amount, default=1, metavar="N", help="for how long to watch, for the rate (1)"
    )
    verify = actions.add_parser(
        "verify", parents=[output], help="fold every job anew and compare; exits with 1 if a row says something else"
    )
    verify.add_argument(
        "--first", type=arguments.amount, default=10, metavar="N", help="how many disagreements to show (10)"
    )
    rebuild = actions.add_parser(
        "rebuild", parents=[output], help="build a projection anew beside the one that serves, and swap the two"
    )
    what = rebuild.add_mutually_exclusive_group()
    what.add_argument("--dry-run", action="store_true", help="only say what would be done")
    what.add_argument("--abort", action="store_true", help="give up a rebuild or rollback that is under way")
    rebuild.add_argument(
        "--workers", type=arguments.amount, default=os.cpu_count() or 1, metavar="N", help="processes (one a core)"
    )
    rollback = actions.add_parser(
        "rollback", parents=[output], help="bring back the projection that served before the last rebuild"
    )
    pause = actions.add_parser("pause", parents=[output], help="pause a projection; reads of a job stay fresh")
    resume = actions.add_parser("resume", parents=[output], help="let a paused projection go on")
    for action in (rebuild, rollback, pause, resume):
        action.add_argument("name", nargs="?", choices=["readmodel"], default="readmodel", help="which (readmodel)")
    set_handlers(
        actions,
        {
            "status": _status,
            "verify": _verify,
            "rebuild": rebuilds.rebuild,
            "rollback": rebuilds.rollback,
            "pause": rebuilds.pause,
            "resume": rebuilds.resume,
        },
        errors={RebuildFailed: CONFLICT},
    )


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """A projection in one partition. lag: events that wait, and for how long; rate: events a second while watched.

    paused: an operator paused it.
    """

    projection: str
    partition: int
    position: int
    head: int
    lag: int
    lag_s: float | None
    rate: float
    paused: bool


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """Where every projection stands, and which build of the read model serves."""

    projections: list[Place]
    readmodel: ReadModelState


class Verified(msgspec.Struct, frozen=True, kw_only=True):
    """How many jobs were compared, how many disagree, and the first of those.

    waiting: events that the projector has not passed yet, and so were not compared.
    """

    jobs: int
    wrong: int
    disagreements: list[Disagreement]
    waiting: int


def _status(args: argparse.Namespace, settings: Settings) -> int:
    async def watch(database: Database, _actor: str) -> Status:
        before, began = await subscription_statuses(database), time.monotonic()
        await asyncio.sleep(args.seconds)
        after = await subscription_statuses(database)
        places = _places(before, after, time.monotonic() - began)
        return Status(projections=places, readmodel=await Rebuild(database).state())

    found = ask_database(settings, "projections", watch)
    print_answer(args.output, found, Group(_status_table(found.projections), "", _told(found.readmodel)))
    return OK


def _places(before: Sequence[SubscriptionStatus], after: Sequence[SubscriptionStatus], seconds: float) -> list[Place]:
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
            paused=one.paused_at is not None,
        )
        for one in after
    ]


def _verify(args: argparse.Namespace, settings: Settings) -> int:
    async def verify(database: Database, _actor: str) -> Verified:
        verifier = ReadModelVerifier(database)
        jobs = 0
        found: list[Disagreement] = []
        async for page in verifier.pages():
            jobs += len(page)
            found += await verifier.check(page)
        found += await verifier.orphans()
        waiting = sum(one.lag for one in await subscription_statuses(database) if one.projection == LIVE)
        return Verified(jobs=jobs, wrong=len(found), disagreements=found[: args.first], waiting=waiting)

    found = ask_database(settings, "projections", verify)
    print_answer(args.output, found, _verdict(found))
    if not (found.jobs or found.wrong):
        return complain(FAILED, "nothing was compared: the log has no job; is this the log that was meant?")
    return FAILED if found.wrong else OK


def _status_table(places: Sequence[Place]) -> Table:
    table = Table("PROJECTION", "PARTITION", "POSITION", "HEAD", "LAG", "WAITING", "EVENTS/S", box=None)
    for one in places:
        waiting = "paused" if one.paused else "-" if one.lag_s is None else f"{one.lag_s:.1f} s"
        numbers = (one.partition, one.position, one.head, one.lag)
        table.add_row(one.projection, *map(str, numbers), waiting, f"{one.rate:.0f}")
    return table


def _told(state: ReadModelState) -> str:
    told = f"Generation {state.generation} of the read model serves (views of version {state.views_version})."
    if (now := state.rebuild) is not None:
        told += (
            f" Another is {now.phase} since {now.started_at:%Y-%m-%d %H:%M:%S} UTC:"
            f" {now.events:,} of {now.of_events:,} events."
        )
    return told


def _verdict(found: Verified) -> RenderableType:
    if not (found.jobs or found.wrong):
        return "Empty: 0 job(s)."
    if not found.wrong:
        waiting = (
            f" {found.waiting:,} event(s) wait for the projector: those were not compared." if found.waiting else ""
        )
        return f"The read model agrees with the log: {found.jobs:,} job(s).{waiting}"
    table = Table("JOB", "PROBLEM", "PLACE", "LOG", "READ MODEL", box=None)
    for one in found.disagreements:
        table.add_row(str(one.job_id), one.problem)
        for place in one.differences:
            table.add_row("", "", *map(escape, (place.path, str(place.before), str(place.after))))
    return Group(table, "", f"{found.wrong:,} of {found.jobs:,} job(s) disagree.")
