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

from dreamforge.backends import ask_database
from dreamforge.cli import arguments
from dreamforge.cli.console import OK, UNAVAILABLE, PipeConsole, complain, print_answer, print_line
from dreamforge.cli.handlers import set_handler
from dreamforge.operations.snapshot import JobCounts, Lag, Queue, Rate, Runner, Snapshot, Steps
from dreamforge.operations.snapshot_reader import Watch
from dreamforge.settings import Settings
from eventstore.database import Database
from eventstore.errors import EventStoreError

_LONG_LAG_S = 60.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `dreamforge top`."""
    parser.add_argument(
        "--every", type=arguments.amount, default=1, metavar="N", help="seconds from one refresh to the next (1)"
    )
    parser.add_argument("--once", action="store_true", help="watch for so long once, print the answer and end")
    parser.add_argument(
        "--output", choices=("table", "json"), default="table", help="json: one object a refresh, a line each"
    )
    parser.add_argument("--json", dest="output", action="store_const", const="json", help="the same as --output json")
    set_handler(parser, _top, log_level="error")


def _top(args: argparse.Namespace, settings: Settings) -> int:
    """Show the service until Ctrl-C, or once."""
    once = args.once or (args.output == "table" and not _watched())
    return _once(args, settings) if once else _live(args, settings)


def _watched() -> bool:
    """Is stdout a terminal on which a full-screen view can be drawn? rich may be told to take a pipe for one."""
    console = PipeConsole()
    return sys.stdout.isatty() and console.is_terminal and not console.is_dumb_terminal


def _once(args: argparse.Namespace, settings: Settings) -> int:
    async def ask(database: Database, _actor: str) -> Snapshot:
        watch = Watch(database)
        await watch.look()
        await asyncio.sleep(args.every)
        return await watch.look()

    picture = ask_database(settings, "top", ask)
    if args.output == "json":
        print_line(picture)
    else:
        print_answer(args.output, picture, _drawn(picture))
    return OK


def _live(args: argparse.Namespace, settings: Settings) -> int:
    show = _lines if args.output == "json" else _screen

    async def follow(database: Database, _actor: str) -> None:
        # A terminal that was told to stop is to be restored as well.
        task = asyncio.current_task()
        if task is not None:
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        await show(Watch(database), args.every)

    with suppress(KeyboardInterrupt, asyncio.CancelledError):
        ask_database(settings, "top", follow)
    return OK


async def _lines(watch: Watch, every: float) -> None:
    """Print a line at each refresh, until interrupted; the first when rates are known."""
    known = False
    while True:
        try:
            picture = await watch.look()
        except EventStoreError as error:
            complain(UNAVAILABLE, str(error))
        else:
            if known:
                print_line(picture)
            known = True
        await asyncio.sleep(every)


async def _screen(watch: Watch, every: float) -> None:
    """Fill the terminal until interrupted. While the database is away the last snapshot stays, and a line says so."""
    picture: Snapshot | None = None
    trouble = ""
    with Live(console=PipeConsole(highlight=False), screen=True, auto_refresh=False) as live:
        asyncio.get_running_loop().add_signal_handler(signal.SIGWINCH, live.refresh)
        while True:
            try:
                picture, trouble = await watch.look(), ""
            except EventStoreError as error:
                trouble = str(error)
            live.update(_drawn(picture, trouble), refresh=True)
            await asyncio.sleep(every)


def _drawn(picture: Snapshot | None, trouble: str = "") -> RenderableType:
    parts: list[RenderableType] = []
    if trouble:
        parts.append(Text(f"No answer: {trouble}", style="bold red"))
    if picture is not None:
        moment = picture.at.astimezone().strftime("%Y-%m-%d %H:%M:%S")
        parts.append(Text(f"Dream Forge · {moment} · the last {picture.window_s:.0f} s", style="bold"))
        parts += ["", _side_by_side(_rates(picture.rates), _work(picture.jobs, picture.steps))]
        parts += ["", _side_by_side(_projections(picture.projections), _queues(picture.queues))]
        parts += ["", _runners(picture.runners)]
    return Group(*parts)


def _side_by_side(left: Table, right: Table) -> Table:
    grid = Table.grid(padding=(0, 4, 0, 0))
    grid.add_row(left, right)
    return grid


def _rates(rates: dict[str, Rate]) -> Table:
    table = _table("RATES", "NOW/S", "MEAN/S", "COUNT")
    for name, rate in rates.items():
        now = "-" if rate.now is None else f"{rate.now:.1f}"
        table.add_row(name.replace("_", " "), now, f"{rate.mean:.1f}", f"{rate.count:,}")
    return table


def _work(jobs: JobCounts, steps: Steps) -> Table:
    table = _table("JOBS", "", "STEPS", "")
    table.add_row("queued", f"{jobs.queued:,}", "succeeded", f"{steps.succeeded:,}")
    table.add_row("running", f"{jobs.running:,}", "retried", _alarming(steps.retried, "yellow"))
    table.add_row("failed", _alarming(jobs.failed, "red"), "failed", _alarming(steps.failed, "red"))
    table.columns[2].justify = "left"
    return table


def _projections(lags: Sequence[Lag]) -> Table:
    table = _table("PROJECTION", "LAG", "WAITING")
    for one in lags:
        style = "red" if one.lag_s is not None and one.lag_s > _LONG_LAG_S else None
        table.add_row(escape(one.projection), f"{one.lag:,}", _seconds(one.lag_s), style=style)
    return table


def _queues(queues: Sequence[Queue]) -> Table:
    table = _table("QUEUE", "VISIBLE", "HIDDEN", "OLDEST")
    for one in queues:
        table.add_row(one.queue, f"{one.visible:,}", f"{one.hidden:,}", _seconds(one.oldest_s))
    return table


def _runners(runners: Sequence[Runner]) -> Table:
    table = _table("RUNNER", "RUNNING", "IMAGES", "HEARD")
    for one in runners:
        heard = f"{one.heard_s:.0f} s ago"
        table.add_row(escape(one.runner), str(one.running), f"{one.images:,}", heard)
    return table


def _table(name: str, *figures: str) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column(name)
    for figure in figures:
        table.add_column(figure, justify="right")
    return table


def _alarming(count: int, style: str) -> str:
    return f"[{style}]{count:,}[/]" if count else "0"


def _seconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.1f} s"
