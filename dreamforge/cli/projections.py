"""`dreamforge projections`: status, verification and rebuilds of the read model."""

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
from dreamforge.cli.console import CONFLICT, FAILED, OK, print_message, print_result
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


class PartitionStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A projection in one partition. lag: in events; lag_s: in seconds. rate: events per second while watched.

    paused: an operator has paused it.
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
    """The position of every projection, and the generation of the read model that serves."""

    projections: list[PartitionStatus]
    readmodel: ReadModelState


class VerificationResult(msgspec.Struct, frozen=True, kw_only=True):
    """How many jobs were compared, how many disagree, and the first disagreements.

    waiting: events that the projector has not handled, and which were not compared.
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
        partitions = _partition_statuses(before, after, time.monotonic() - began)
        return Status(projections=partitions, readmodel=await Rebuild(database).state())

    found = ask_database(settings, "projections", watch)
    print_result(args.output, found, Group(_status_table(found.projections), "", _state_text(found.readmodel)))
    return OK


def _partition_statuses(
    before: Sequence[SubscriptionStatus], after: Sequence[SubscriptionStatus], seconds: float
) -> list[PartitionStatus]:
    earlier = {(status.projection, status.partition): status.position for status in before}
    return [
        PartitionStatus(
            projection=status.projection,
            partition=status.partition,
            position=status.position,
            head=status.head,
            lag=status.lag,
            lag_s=status.lag_s,
            rate=(status.position - earlier.get((status.projection, status.partition), status.position)) / seconds,
            paused=status.paused_at is not None,
        )
        for status in after
    ]


def _verify(args: argparse.Namespace, settings: Settings) -> int:
    async def verify(database: Database, _actor: str) -> VerificationResult:
        verifier = ReadModelVerifier(database)
        jobs = 0
        found: list[Disagreement] = []
        async for page in verifier.pages():
            jobs += len(page)
            found += await verifier.check(page)
        found += await verifier.orphans()
        waiting = sum(status.lag for status in await subscription_statuses(database) if status.projection == LIVE)
        return VerificationResult(jobs=jobs, wrong=len(found), disagreements=found[: args.first], waiting=waiting)

    found = ask_database(settings, "projections", verify)
    print_result(args.output, found, _result_text(found))
    if not (found.jobs or found.wrong):
        return print_message(FAILED, "nothing was compared: the log has no job; is this the log that was meant?")
    return FAILED if found.wrong else OK


def _status_table(partitions: Sequence[PartitionStatus]) -> Table:
    table = Table("PROJECTION", "PARTITION", "POSITION", "HEAD", "LAG", "WAITING", "EVENTS/S", box=None)
    for status in partitions:
        waiting = "paused" if status.paused else "-" if status.lag_s is None else f"{status.lag_s:.1f} s"
        numbers = (status.partition, status.position, status.head, status.lag)
        table.add_row(status.projection, *map(str, numbers), waiting, f"{status.rate:.0f}")
    return table


def _state_text(state: ReadModelState) -> str:
    text = f"Generation {state.generation} of the read model serves (views of version {state.views_version})."
    if (now := state.rebuild) is not None:
        text += (
            f" Another is {now.phase} since {now.started_at:%Y-%m-%d %H:%M:%S} UTC:"
            f" {now.events:,} of {now.of_events:,} events."
        )
    return text


def _result_text(found: VerificationResult) -> RenderableType:
    if not (found.jobs or found.wrong):
        return "Empty: 0 job(s)."
    if not found.wrong:
        waiting = (
            f" {found.waiting:,} event(s) wait for the projector: those were not compared." if found.waiting else ""
        )
        return f"The read model agrees with the log: {found.jobs:,} job(s).{waiting}"
    table = Table("JOB", "PROBLEM", "PLACE", "LOG", "READ MODEL", box=None)
    for disagreement in found.disagreements:
        table.add_row(str(disagreement.job_id), disagreement.problem)
        for difference in disagreement.differences:
            cells = (difference.path, str(difference.before), str(difference.after))
            table.add_row("", "", *map(escape, cells))
    return Group(table, "", f"{found.wrong:,} of {found.jobs:,} job(s) disagree.")
