"""`dreamforge top`: a live view of what the service does, for its operators."""

import argparse
import asyncio
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress

from rich.console import Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from dreamforge.backends import run_with_database
from dreamforge.cli import arguments
from dreamforge.cli.console import OK, UNAVAILABLE, PipeConsole, print_json_line, print_message, print_result
from dreamforge.cli.handlers import set_handler
from dreamforge.operations.snapshot import (
    EventRate,
    JobCounts,
    ProjectionLag,
    QueueCounts,
    RunnerActivity,
    Snapshot,
    StepCounts,
)
from dreamforge.operations.snapshot_reader import SnapshotReader
from dreamforge.settings import Settings
from eventstore.database import Database
from eventstore.errors import EventStoreError

_HIGHLIGHTED_LAG_S = 60.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `dreamforge top`."""
    arguments.add_count_option(parser, "--every", "seconds from one refresh to the next (1)", 1)
    parser.add_argument("--once", action="store_true", help="watch for so long once, print the answer and end")
    arguments.add_output_option(parser, "json: one object a refresh, a line each")
    set_handler(parser, _handle_top, log_level="error")


def _handle_top(args: argparse.Namespace, settings: Settings) -> int:
    """Show the service until Ctrl-C, or once."""
    once = args.once or (args.output == "table" and not _is_full_screen_terminal())
    return _show_once(args, settings) if once else _show_live(args, settings)


def _is_full_screen_terminal() -> bool:
    """Whether stdout is a terminal that supports a full-screen view. rich may be configured to treat a pipe as one."""
    console = PipeConsole()
    return sys.stdout.isatty() and console.is_terminal and not console.is_dumb_terminal


def _show_once(args: argparse.Namespace, settings: Settings) -> int:
    async def ask(database: Database) -> Snapshot:
        reader = SnapshotReader(database)
        await reader.next_snapshot()
        await asyncio.sleep(args.every)
        return await reader.next_snapshot()

    snapshot = run_with_database(settings, "top", ask)
    if args.output == "json":
        print_json_line(snapshot)
    else:
        print_result(args.output, snapshot, _build_layout(snapshot))
    return OK


def _show_live(args: argparse.Namespace, settings: Settings) -> int:
    show = _print_json_lines if args.output == "json" else _show_screen

    async def follow(database: Database) -> None:
        # SIGTERM must restore the terminal, too.
        task = asyncio.current_task()
        if task is not None:
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        await show(SnapshotReader(database), args.every)

    with suppress(KeyboardInterrupt, asyncio.CancelledError):
        run_with_database(settings, "top", follow)
    return OK


async def _print_json_lines(reader: SnapshotReader, interval_s: float) -> None:
    """Print a line at each refresh, until interrupted. The first snapshot has no rates and is not printed."""
    has_rates = False
    while True:
        try:
            snapshot = await reader.next_snapshot()
        except EventStoreError as error:
            print_message(UNAVAILABLE, str(error))
        else:
            if has_rates:
                print_json_line(snapshot)
            has_rates = True
        await asyncio.sleep(interval_s)


async def _show_screen(reader: SnapshotReader, interval_s: float) -> None:
    """Show a full-screen view until interrupted. After an error, show the last snapshot and the error."""
    snapshot: Snapshot | None = None
    error_text = ""
    with Live(console=PipeConsole(highlight=False), screen=True, auto_refresh=False) as live:
        asyncio.get_running_loop().add_signal_handler(signal.SIGWINCH, live.refresh)
        while True:
            try:
                snapshot, error_text = await reader.next_snapshot(), ""
            except EventStoreError as error:
                error_text = str(error)
            live.update(_build_layout(snapshot, error_text), refresh=True)
            await asyncio.sleep(interval_s)


def _build_layout(snapshot: Snapshot | None, error_text: str = "") -> RenderableType:
    parts: list[RenderableType] = []
    if error_text:
        parts.append(Text(f"No answer: {error_text}", style="bold red"))
    if snapshot is not None:
        moment = snapshot.at.astimezone().strftime("%Y-%m-%d %H:%M:%S")
        parts.append(Text(f"Dream Forge · {moment} · the last {snapshot.window_s:.0f} s", style="bold"))
        parts += [
            "",
            _place_side_by_side(_rates_table(snapshot.rates), _jobs_and_steps_table(snapshot.jobs, snapshot.steps)),
        ]
        parts += ["", _place_side_by_side(_projections_table(snapshot.projections), _queues_table(snapshot.queues))]
        parts += ["", _runners_table(snapshot.runners)]
    return Group(*parts)


def _place_side_by_side(left: Table, right: Table) -> Table:
    grid = Table.grid(padding=(0, 4, 0, 0))
    grid.add_row(left, right)
    return grid


def _rates_table(rates: dict[str, EventRate]) -> Table:
    table = _empty_table("RATES", "NOW/S", "MEAN/S", "COUNT")
    for name, rate in rates.items():
        now = "-" if rate.now is None else f"{rate.now:.1f}"
        table.add_row(name.replace("_", " "), now, f"{rate.mean:.1f}", f"{rate.count:,}")
    return table


def _jobs_and_steps_table(jobs: JobCounts, steps: StepCounts) -> Table:
    table = _empty_table("JOBS", "", "STEPS", "")
    table.add_row("queued", f"{jobs.queued:,}", "succeeded", f"{steps.succeeded:,}")
    table.add_row("running", f"{jobs.running:,}", "retried", _highlight_nonzero(steps.retried, "yellow"))
    table.add_row("failed", _highlight_nonzero(jobs.failed, "red"), "failed", _highlight_nonzero(steps.failed, "red"))
    table.columns[2].justify = "left"
    return table


def _projections_table(lags: Sequence[ProjectionLag]) -> Table:
    table = _empty_table("PROJECTION", "LAG", "WAITING")
    for one in lags:
        style = "red" if one.lag_s is not None and one.lag_s > _HIGHLIGHTED_LAG_S else None
        table.add_row(escape(one.projection), f"{one.lag:,}", _seconds_text(one.lag_s), style=style)
    return table


def _queues_table(queues: Sequence[QueueCounts]) -> Table:
    table = _empty_table("QUEUE", "VISIBLE", "HIDDEN", "OLDEST")
    for one in queues:
        table.add_row(one.queue, f"{one.visible:,}", f"{one.hidden:,}", _seconds_text(one.oldest_s))
    return table


def _runners_table(runners: Sequence[RunnerActivity]) -> Table:
    table = _empty_table("RUNNER", "RUNNING", "IMAGES", "HEARD")
    for one in runners:
        heard = f"{one.heard_s:.0f} s ago"
        table.add_row(escape(one.runner), str(one.running), f"{one.images:,}", heard)
    return table


def _empty_table(first_column: str, *number_columns: str) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column(first_column)
    for figure in number_columns:
        table.add_column(figure, justify="right")
    return table


def _highlight_nonzero(count: int, style: str) -> str:
    return f"[{style}]{count:,}[/]" if count else "0"


def _seconds_text(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.1f} s"
