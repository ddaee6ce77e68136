"""`dreamforge projections rebuild|rollback|pause|resume`."""

import argparse
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TypeVar

import msgspec
from rich.filesize import decimal
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from dreamforge.backends import ask_database
from dreamforge.cli.console import OK, PipeConsole, print_result
from dreamforge.operations.rebuild import fill, show_progress
from dreamforge.settings import Settings
from eventstore.database import Database
from projections import job_view
from projections.rebuild import ReadModelState, Rebuild

T = TypeVar("T")

_SIZES = """
select (select coalesce(sum(position), 0)::bigint from (
        select max(position) as position from eventstore.events group by partition) as heads) as events,
    (select sum(pg_total_relation_size(oid))::bigint from pg_class
    where relnamespace = 'readmodel'::regnamespace and relkind = 'r') as bytes
"""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
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


def rebuild(args: argparse.Namespace, settings: Settings) -> int:
    """Rebuild the read model, show the plan, or abort a rebuild."""
    if args.dry_run:
        plan = ask_database(settings, "projections", _plan)
        print_result(args.output, plan, _plan_text(plan))
        return OK
    if args.abort:
        return _abort(args, settings)

    async def run(database: Database, _actor: str) -> SwapResult:
        rebuilder = Rebuild(database)
        began = time.monotonic()
        async with _progress_bars(rebuilder, quiet=args.output == "json"):
            await rebuilder.begin()
            await fill(rebuilder, database, args.workers)
            under_way = (await rebuilder.state()).rebuild
            async for _ in rebuilder.index():
                pass
            lag = await rebuilder.follow()
        events = 0 if under_way is None else under_way.of_events
        return _swap_result(rebuilder, events, time.monotonic() - began, lag)

    done = ask_database(settings, "projections", run)
    text = (
        f"Generation {done.generation} serves: {done.events:,} events in {done.seconds:.1f} s ({done.rate:,.0f}/s). "
        f"It was {done.lag_s:.2f} s behind when it took over.\n"
        "The one before is kept: `dreamforge projections rollback` brings it back."
    )
    print_result(args.output, done, text)
    return OK


def rollback(args: argparse.Namespace, settings: Settings) -> int:
    """Roll back to the previous generation."""

    async def run(database: Database, _actor: str) -> SwapResult:
        rebuilder = Rebuild(database)
        began = time.monotonic()
        await rebuilder.begin_rollback()
        async with _progress_bars(rebuilder, quiet=args.output == "json"):
            lag = await rebuilder.follow()
        return _swap_result(rebuilder, 0, time.monotonic() - began, lag)

    done = ask_database(settings, "projections", run)
    text = f"Generation {done.generation} serves again; it was {done.lag_s:.2f} s behind when it took over."
    print_result(args.output, done, text)
    return OK


def pause(args: argparse.Namespace, settings: Settings) -> int:
    """Pause a projection."""
    return _pause(args, settings, paused=True, text=f"{args.name} is paused; reads of a job stay fresh, lists do not.")


def resume(args: argparse.Namespace, settings: Settings) -> int:
    """Resume a projection."""
    return _pause(args, settings, paused=False, text=f"{args.name} goes on within some seconds.")


def _pause(args: argparse.Namespace, settings: Settings, *, paused: bool, text: str) -> int:
    async def run(database: Database, _actor: str) -> bool:
        return await Rebuild(database).pause(args.name, paused=paused)

    if not ask_database(settings, "projections", run):
        text = f"{args.name} has not run yet: there is nothing to pause."
    print_result(args.output, {"projection": args.name, "paused": paused}, text)
    return OK


def _abort(args: argparse.Namespace, settings: Settings) -> int:
    async def run(database: Database, _actor: str) -> bool:
        return await Rebuild(database).abort()

    aborted = ask_database(settings, "projections", run)
    text = "It was given up; what served serves on." if aborted else "Nothing was under way."
    print_result(args.output, {"aborted": aborted}, text)
    return OK


async def _plan(database: Database, _actor: str) -> Plan:
    sizes = (await database.read(_SIZES))[0]
    return Plan(
        state=await Rebuild(database).state(),
        views_version=job_view.VERSION,
        events=sizes["events"],
        bytes=sizes["bytes"],
    )


def _swap_result(rebuilder: Rebuild, events: int, seconds: float, lag: float) -> SwapResult:
    return SwapResult(generation=rebuilder.generation, events=events, seconds=seconds, rate=events / seconds, lag_s=lag)


@asynccontextmanager
async def _progress_bars(rebuilder: Rebuild, *, quiet: bool) -> AsyncIterator[None]:
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


def _plan_text(plan: Plan) -> str:
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
