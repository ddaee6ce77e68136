"""`dreamforge projections`: status, verification and rebuilds of the read model."""

import argparse
import asyncio
import os
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import msgspec
from rich.console import Group, RenderableType
from rich.filesize import decimal
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from dreamforge.backends import run_with_database
from dreamforge.cli import arguments
from dreamforge.cli.console import CONFLICT, FAILED, OK, PipeConsole, plain_table, print_message, print_result
from dreamforge.cli.handlers import set_handlers
from dreamforge.operations.rebuild import fill_in_processes, show_progress
from dreamforge.settings import Settings
from eventstore.database import Database
from orchestrator.copying import copy_fields
from projections import job_view
from projections.projector import LIVE_SCHEMA
from projections.rebuild import ReadModelState, Rebuild, RebuildFailed
from projections.subscription_status import SubscriptionStatus, read_subscription_statuses
from projections.verifier import Disagreement, ReadModelVerifier

_REBUILD_SIZE_SQL = """
select (select coalesce(sum(position), 0)::bigint from (
        select max(position) as position from eventstore.events group by partition) as heads) as events,
    (select sum(pg_total_relation_size(oid))::bigint from pg_class
    where relnamespace = 'readmodel'::regnamespace and relkind = 'r') as bytes
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `dreamforge projections`."""
    actions = arguments.add_subcommands(parser)
    output = arguments.output_option_parser(json_alias=True)

    status = actions.add_parser("status", parents=[output], help="each projection's place, lag and rate, by partition")
    arguments.add_count_option(status, "--seconds", "for how long to watch, for the rate (1)", 1)
    verify = actions.add_parser(
        "verify", parents=[output], help="fold every job anew and compare; exits with 1 if a row says something else"
    )
    arguments.add_count_option(verify, "--first", "how many disagreements to show (10)", 10)
    rebuild = actions.add_parser(
        "rebuild", parents=[output], help="build a projection anew beside the one that serves, and swap the two"
    )
    what = rebuild.add_mutually_exclusive_group()
    what.add_argument("--dry-run", action="store_true", help="only say what would be done")
    what.add_argument("--abort", action="store_true", help="give up a rebuild or rollback that is under way")
    arguments.add_count_option(rebuild, "--workers", "processes (one a core)", os.cpu_count() or 1)
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
            "status": _show_status,
            "verify": _verify_read_model,
            "rebuild": _rebuild_read_model,
            "rollback": _roll_back_read_model,
            "pause": _pause_projection,
            "resume": _resume_projection,
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


class ProjectionsStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The position of every projection, and the generation of the read model that serves."""

    projections: list[PartitionStatus]
    readmodel: ReadModelState


class ReadModelVerification(msgspec.Struct, frozen=True, kw_only=True):
    """How many jobs were compared, how many disagree, and the first disagreements.

    waiting: events that the projector has not handled, and which were not compared.
    """

    jobs: int
    wrong: int
    disagreements: list[Disagreement]
    waiting: int


class ReadModelRebuildPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What a rebuild would do. events: to read. bytes: about the additional disk space that it needs."""

    state: ReadModelState
    views_version: int
    events: int
    bytes: int


class SwapResult(msgspec.Struct, frozen=True, kw_only=True):
    """A completed rebuild or rollback. generation: the one that serves now. lag_s: its lag at the swap, in seconds."""

    generation: int
    events: int
    seconds: float
    rate: float
    lag_s: float


def _show_status(args: argparse.Namespace, settings: Settings) -> int:
    async def watch(database: Database) -> ProjectionsStatus:
        before, began = await read_subscription_statuses(database), time.monotonic()
        await asyncio.sleep(args.seconds)
        after = await read_subscription_statuses(database)
        partitions = _partition_statuses(before, after, time.monotonic() - began)
        return ProjectionsStatus(projections=partitions, readmodel=await Rebuild(database).state())

    found = run_with_database(settings, "projections", watch)
    print_result(
        args.output, found, Group(_status_table(found.projections), "", _read_model_state_text(found.readmodel))
    )
    return OK


def _partition_statuses(
    before: Sequence[SubscriptionStatus], after: Sequence[SubscriptionStatus], seconds: float
) -> list[PartitionStatus]:
    earlier = {(status.projection, status.partition): status.position for status in before}
    return [
        copy_fields(
            status,
            PartitionStatus,
            rate=(status.position - earlier.get((status.projection, status.partition), status.position)) / seconds,
            paused=status.paused_at is not None,
        )
        for status in after
    ]


def _verify_read_model(args: argparse.Namespace, settings: Settings) -> int:
    async def verify(database: Database) -> ReadModelVerification:
        verifier = ReadModelVerifier(database)
        jobs = 0
        found: list[Disagreement] = []
        async for page in verifier.job_id_pages():
            jobs += len(page)
            found += await verifier.check_jobs(page)
        found += await verifier.find_orphans()
        waiting = sum(
            status.lag for status in await read_subscription_statuses(database) if status.projection == LIVE_SCHEMA
        )
        return ReadModelVerification(jobs=jobs, wrong=len(found), disagreements=found[: args.first], waiting=waiting)

    found = run_with_database(settings, "projections", verify)
    print_result(args.output, found, _verification_text(found))
    if not (found.jobs or found.wrong):
        return print_message(FAILED, "nothing was compared: the log has no job; is this the log that was meant?")
    return FAILED if found.wrong else OK


def _rebuild_read_model(args: argparse.Namespace, settings: Settings) -> int:
    if args.dry_run:
        plan = run_with_database(settings, "projections", _read_rebuild_plan)
        print_result(args.output, plan, _plan_text(plan))
        return OK
    if args.abort:
        return _abort_rebuild(args, settings)

    async def run(database: Database) -> SwapResult:
        rebuilder = Rebuild(database)
        began = time.monotonic()
        async with _show_progress_bar(rebuilder, quiet=args.output == "json"):
            await rebuilder.begin()
            await fill_in_processes(rebuilder, database, args.workers)
            under_way = (await rebuilder.state()).rebuild
            async for _ in rebuilder.build_missing_indexes():
                pass
            lag = await rebuilder.follow_and_swap()
        events = 0 if under_way is None else under_way.of_events
        return _make_swap_result(rebuilder, events, time.monotonic() - began, lag)

    done = run_with_database(settings, "projections", run)
    text = (
        f"Generation {done.generation} serves: {done.events:,} events in {done.seconds:.1f} s ({done.rate:,.0f}/s). "
        f"It was {done.lag_s:.2f} s behind when it took over.\n"
        "The one before is kept: `dreamforge projections rollback` brings it back."
    )
    print_result(args.output, done, text)
    return OK


def _roll_back_read_model(args: argparse.Namespace, settings: Settings) -> int:
    async def run(database: Database) -> SwapResult:
        rebuilder = Rebuild(database)
        began = time.monotonic()
        await rebuilder.begin_rollback()
        async with _show_progress_bar(rebuilder, quiet=args.output == "json"):
            lag = await rebuilder.follow_and_swap()
        return _make_swap_result(rebuilder, 0, time.monotonic() - began, lag)

    done = run_with_database(settings, "projections", run)
    text = f"Generation {done.generation} serves again; it was {done.lag_s:.2f} s behind when it took over."
    print_result(args.output, done, text)
    return OK


def _pause_projection(args: argparse.Namespace, settings: Settings) -> int:
    return _set_paused(args, settings, f"{args.name} is paused; reads of a job stay fresh, lists do not.", paused=True)


def _resume_projection(args: argparse.Namespace, settings: Settings) -> int:
    return _set_paused(args, settings, f"{args.name} goes on within some seconds.", paused=False)


def _set_paused(args: argparse.Namespace, settings: Settings, message: str, *, paused: bool) -> int:
    if not run_with_database(
        settings, "projections", lambda database: Rebuild(database).set_paused(args.name, paused=paused)
    ):
        message = f"{args.name} has not run yet: there is nothing to pause."
    print_result(args.output, {"projection": args.name, "paused": paused}, message)
    return OK


def _abort_rebuild(args: argparse.Namespace, settings: Settings) -> int:
    aborted = run_with_database(settings, "projections", lambda database: Rebuild(database).abort())
    text = "It was given up; what served serves on." if aborted else "Nothing was under way."
    print_result(args.output, {"aborted": aborted}, text)
    return OK


async def _read_rebuild_plan(database: Database) -> ReadModelRebuildPlan:
    sizes = (await database.read(_REBUILD_SIZE_SQL))[0]
    return ReadModelRebuildPlan(
        state=await Rebuild(database).state(),
        views_version=job_view.VIEWS_VERSION,
        events=sizes["events"],
        bytes=sizes["bytes"],
    )


def _make_swap_result(rebuilder: Rebuild, events: int, seconds: float, lag_s: float) -> SwapResult:
    return SwapResult(
        generation=rebuilder.generation, events=events, seconds=seconds, rate=events / seconds, lag_s=lag_s
    )


@asynccontextmanager
async def _show_progress_bar(rebuilder: Rebuild, *, quiet: bool) -> AsyncIterator[None]:
    """Show a progress bar with rate and remaining time, if stderr is a terminal."""
    columns = (
        TextColumn("{task.description:>10}"),
        BarColumn(bar_width=None),
        TaskProgressColumn(show_speed=True),
        TextColumn("{task.completed:,.0f} of {task.total:,.0f} events"),
        TimeRemainingColumn(),
    )
    console = PipeConsole(stderr=True)
    with Progress(*columns, console=console, disable=quiet or not console.is_terminal, transient=True) as bars:
        bar = bars.add_task("", total=1)

        def show(state: ReadModelState) -> None:
            if (now := state.rebuild) is None:
                return
            phase = "indexing" if now.phase == "filling" and now.filled == now.chunks else now.phase
            bars.update(bar, description=phase, completed=now.events, total=now.of_events)

        async with show_progress(rebuilder, show):
            yield


def _plan_text(plan: ReadModelRebuildPlan) -> str:
    state = plan.state
    text = (
        f"Generation {state.generation} serves, of views of version {state.views_version}; "
        f"this release has version {plan.views_version}.\n"
        f"A rebuild would fold {plan.events:,} events, and need about {decimal(plan.bytes)} beside what is in use."
    )
    if (now := state.rebuild) is not None:
        progress = f"{now.phase}, {now.filled} of {now.chunks} chunks"
        text += f"\nOne was begun at {now.started_at:%Y-%m-%d %H:%M:%S} UTC ({progress}): it would go on with that."
    if state.before:
        text += "\nThe generation before is still there; it is dropped when the next takes over."
    return text


def _status_table(partitions: Sequence[PartitionStatus]) -> Table:
    rows = []
    for one in partitions:
        waiting = "paused" if one.paused else "-" if one.lag_s is None else f"{one.lag_s:.1f} s"
        numbers = (one.partition, one.position, one.head, one.lag)
        rows.append((one.projection, *numbers, waiting, f"{one.rate:.0f}"))
    return plain_table("PROJECTION", "PARTITION", "POSITION", "HEAD", "LAG", "WAITING", "EVENTS/S", rows=rows)


def _read_model_state_text(state: ReadModelState) -> str:
    text = f"Generation {state.generation} of the read model serves (views of version {state.views_version})."
    if (now := state.rebuild) is not None:
        text += (
            f" Another is {now.phase} since {now.started_at:%Y-%m-%d %H:%M:%S} UTC:"
            f" {now.events:,} of {now.of_events:,} events."
        )
    return text


def _verification_text(verification: ReadModelVerification) -> RenderableType:
    if not (verification.jobs or verification.wrong):
        return "Empty: 0 job(s)."
    if not verification.wrong:
        waiting = (
            f" {verification.waiting:,} event(s) wait for the projector: those were not compared."
            if verification.waiting
            else ""
        )
        return f"The read model agrees with the log: {verification.jobs:,} job(s).{waiting}"
    rows: list[tuple[object, ...]] = []
    for disagreement in verification.disagreements:
        rows.append((disagreement.job_id, disagreement.problem))
        rows += [("", "", one.path, str(one.before), str(one.after)) for one in disagreement.differences]
    table = plain_table("JOB", "PROBLEM", "PLACE", "LOG", "READ MODEL", rows=rows)
    return Group(table, "", f"{verification.wrong:,} of {verification.jobs:,} job(s) disagree.")
