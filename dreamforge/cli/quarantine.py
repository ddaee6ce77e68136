"""`dreamforge jobs quarantine`: lists, shows and releases quarantined jobs."""

import argparse
from collections.abc import Sequence
from functools import partial

from rich.table import Table

from dreamforge.backends import run_with_database, user_at_host
from dreamforge.cli import arguments
from dreamforge.cli.arguments import CommandParser
from dreamforge.cli.console import CONFLICT, NOT_FOUND, OK, plain_table, print_message, print_result
from dreamforge.cli.handlers import set_handlers
from dreamforge.client.responses import AmbiguousId
from dreamforge.settings import Settings
from eventstore.database import Database
from eventstore.log import Log
from orchestrator.events import JobErased
from orchestrator.quarantine_log import Quarantine, QuarantinedJob


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `dreamforge jobs quarantine`."""
    actions = arguments.add_subcommands(parser)
    output = arguments.output_option_parser()
    one = CommandParser(add_help=False)
    one.add_argument("job_id", metavar="ID", type=arguments.parse_job_id)

    listed = actions.add_parser("list", parents=[output], help="the jobs that are set aside")
    listed.add_argument("--all", action="store_true", help="those that were left failed, too")
    actions.add_parser("show", parents=[output, one], help="one of them")
    actions.add_parser("release", parents=[output, one], help="let it go on, with a release that can read it")
    actions.add_parser("fail", parents=[output, one], help="leave it failed for good")
    set_handlers(
        actions,
        {
            "list": _list_jobs,
            "show": _show_job,
            "release": partial(_end_quarantine, resume=True),
            "fail": partial(_end_quarantine, resume=False),
        },
    )


_MIN_PREFIX_LENGTH = 4
"""Of a prefix of an id, in characters. A shorter one could match by chance."""


class PromptErased(Exception):
    """The job's prompt was erased."""


def _list_jobs(args: argparse.Namespace, settings: Settings) -> int:
    found = run_with_database(
        settings, "quarantine", lambda database: Quarantine(Log(database), user_at_host()).quarantined_jobs()
    )
    shown = [one for one in found if args.all or one.state == "quarantined"]
    print_result(args.output, shown, _quarantined_jobs_table(shown) if shown else "No job is set aside.")
    return OK


def _show_job(args: argparse.Namespace, settings: Settings) -> int:
    found = run_with_database(
        settings, "quarantine", lambda database: _find_job(Quarantine(Log(database), user_at_host()), args.job_id)
    )
    if found is None:
        return print_message(NOT_FOUND, f"job {args.job_id} is not set aside")
    print_result(args.output, found, _quarantined_jobs_table([found]))
    return OK


def _end_quarantine(args: argparse.Namespace, settings: Settings, *, resume: bool) -> int:
    async def end(database: Database) -> QuarantinedJob | None:
        log = Log(database)
        quarantine = Quarantine(log, user_at_host())
        found = await _find_job(quarantine, args.job_id)
        if found is None:
            return None
        if resume and any(event.code == JobErased.code for event in await log.read_stream(found.job_id)):
            raise PromptErased
        if resume or found.state == "quarantined":
            await quarantine.release_job(found, resume=resume)
        else:
            await log.confirm_replicated()
        return found

    try:
        found = run_with_database(settings, "quarantine", end)
    except PromptErased:
        return print_message(
            CONFLICT, f"the prompt of job {args.job_id} was erased; it can't go on, only be left failed"
        )
    if found is None:
        return print_message(CONFLICT, f"job {args.job_id} is not set aside")
    done = "goes on, if this release can read its history" if resume else "stays failed"
    print_result(args.output, found, f"Job {found.job_id} {done}.")
    return OK


async def _find_job(quarantine: Quarantine, id_or_prefix: str) -> QuarantinedJob | None:
    """The quarantined job with this id, or the only one whose id begins with the text; else None."""
    prefix = id_or_prefix.lower().replace("-", "")
    if len(prefix) < _MIN_PREFIX_LENGTH:
        return None
    matches = [job for job in await quarantine.quarantined_jobs() if job.job_id.hex.startswith(prefix)]
    if len(matches) > 1:
        raise AmbiguousId(f"{len(matches)} jobs that are set aside have an id that begins with {id_or_prefix}")
    return matches[0] if matches else None


def _quarantined_jobs_table(quarantined_jobs: Sequence[QuarantinedJob]) -> Table:
    rows = [
        (one.job_id, one.tenant, f"{one.since:%Y-%m-%d %H:%M:%S}", one.state, one.reader, one.at_version, one.reason)
        for one in quarantined_jobs
    ]
    return plain_table("JOB", "TENANT", "SINCE", "STATE", "READER", "VERSION", "REASON", rows=rows)
