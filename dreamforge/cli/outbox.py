"""`dreamforge outbox`: compares the queues with the log, rebuilds and purges them."""

import argparse
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TypeVar

from rich.table import Table

from dreamforge.backends import run_with_database, user_at_host
from dreamforge.cli import arguments
from dreamforge.cli.console import FAILED, OK, plain_table, print_message, print_result
from dreamforge.cli.handlers import set_handlers
from dreamforge.settings import Settings
from orchestrator.reconciler import OutboxReconciler, QueueStatus
from orchestrator.step_kinds import STEP_KINDS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `dreamforge outbox`."""
    actions = arguments.add_subcommands(parser)
    output = arguments.output_option_parser()

    actions.add_parser("status", parents=[output], help="compare the queues with the pending commands of the log")
    rebuild = actions.add_parser("rebuild", parents=[output], help="send pending commands that no queue holds")
    rebuild.add_argument("--dry-run", action="store_true", help="only show what would be sent")
    purge = actions.add_parser(
        "purge", parents=[output], help="delete every command; rebuild sends the pending ones again"
    )
    purge.add_argument("--yes", action="store_true", help="do it; without this it is only shown")
    set_handlers(actions, {"status": _show_status, "rebuild": _rebuild_queues, "purge": _purge_queues})


T = TypeVar("T")


def _show_status(args: argparse.Namespace, settings: Settings) -> int:
    found = _call_reconciler(settings, OutboxReconciler.queue_statuses)
    print_result(args.output, found, _status_table(found))
    if any(queue.missing for queue in found):
        return print_message(FAILED, "the log owes commands that no queue holds; run `dreamforge outbox rebuild`")
    return OK


def _rebuild_queues(args: argparse.Namespace, settings: Settings) -> int:
    if args.dry_run:
        found, done = _call_reconciler(settings, OutboxReconciler.missing_commands), "to send"
    else:
        found, done = _call_reconciler(settings, lambda reconciler: reconciler.rebuild(settings.lease_s)), "sent"
    counts = Counter(str(one.step) for one in found)
    print_result(args.output, found, _queue_counts_table({queue: counts[queue] for queue in STEP_KINDS}, done))
    return OK


def _purge_queues(args: argparse.Namespace, settings: Settings) -> int:
    if not args.yes:
        held = {
            str(queue.queue): queue.visible + queue.hidden
            for queue in _call_reconciler(settings, OutboxReconciler.queue_statuses)
        }
        print_result(args.output, held, _queue_counts_table(held, "to throw away"))
        return print_message(OK, "nothing was done; add --yes to do it, and then run `dreamforge outbox rebuild`")
    purged = _call_reconciler(settings, OutboxReconciler.purge)
    print_result(args.output, purged, _queue_counts_table(purged, "thrown away"))
    return OK


def _call_reconciler(settings: Settings, call: Callable[[OutboxReconciler], Awaitable[T]]) -> T:
    return run_with_database(settings, "outbox", lambda database: call(OutboxReconciler(database, user_at_host())))


def _status_table(queue_statuses: Sequence[QueueStatus]) -> Table:
    rows = [
        (one.queue, one.visible, one.hidden, one.idle, one.missing, _age_text(one.oldest)) for one in queue_statuses
    ]
    return plain_table("QUEUE", "VISIBLE", "HIDDEN", "IDLE", "MISSING", "OLDEST", rows=rows)


def _age_text(moment: datetime | None) -> str:
    return "-" if moment is None else f"{(datetime.now(UTC) - moment).total_seconds():.0f} s"


def _queue_counts_table(counts: Mapping[str, int], count_heading: str) -> Table:
    return plain_table("QUEUE", count_heading.upper(), rows=counts.items())
