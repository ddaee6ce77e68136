"""What `dreamforge jobs quarantine` does and answers."""

import argparse
from collections.abc import Callable, Sequence

from rich.markup import escape
from rich.table import Table

from dreamforge import logs
from dreamforge.backends import ask_database
from dreamforge.client import Ambiguous
from dreamforge.console import CONFLICT, NOT_FOUND, OK, UNAVAILABLE, complain, print_answer
from dreamforge.embedded import EmbeddedError
from dreamforge.settings import Settings
from eventstore.database import Database
from eventstore.errors import EventStoreError
from eventstore.events import JobErased
from eventstore.log import Log
from orchestrator.quarantine_log import Quarantine, QuarantinedJob

_SHORTEST = 4
"""Characters of the beginning of an id; shorter ones would hit by chance."""


class Erased(Exception):
    """The job's prompt was taken away."""


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Run one command; returns the exit code."""
    logs.configure("warning", settings.log_format)
    commands: dict[str, Callable[[argparse.Namespace, Settings], int]] = {
        "list": _list,
        "show": _show,
        "release": lambda args, settings: _end(args, settings, resume=True),
        "fail": lambda args, settings: _end(args, settings, resume=False),
    }
    try:
        return commands[args.action](args, settings)
    except (EmbeddedError, EventStoreError) as error:
        return complain(UNAVAILABLE, str(error))


def _list(args: argparse.Namespace, settings: Settings) -> int:
    async def ask(database: Database, actor: str) -> list[QuarantinedJob]:
        return await Quarantine(Log(database), actor).all()

    found = ask_database(settings, "quarantine", ask)
    shown = [one for one in found if args.all or one.state == "quarantined"]
    print_answer(args.output, shown, _table(shown) if shown else "No job is set aside.")
    return OK


def _show(args: argparse.Namespace, settings: Settings) -> int:
    async def ask(database: Database, actor: str) -> QuarantinedJob | None:
        return await _found(Quarantine(Log(database), actor), args.job_id)

    found = ask_database(settings, "quarantine", ask)
    if found is None:
        return complain(NOT_FOUND, f"job {args.job_id} is not set aside")
    print_answer(args.output, found, _table([found]))
    return OK


def _end(args: argparse.Namespace, settings: Settings, *, resume: bool) -> int:
    async def end(database: Database, actor: str) -> QuarantinedJob | None:
        log = Log(database)
        quarantine = Quarantine(log, actor)
        found = await _found(quarantine, args.job_id)
        if found is None:
            return None
        if resume and any(event.code == JobErased.code for event in await log.stream(found.job_id)):
            raise Erased
        if resume or found.state == "quarantined":
            await quarantine.release(found, resume=resume)
        else:
            await log.confirm_replicated()
        return found

    try:
        found = ask_database(settings, "quarantine", end)
    except Erased:
        return complain(CONFLICT, f"the prompt of job {args.job_id} was erased; it can't go on, only be left failed")
    if found is None:
        return complain(CONFLICT, f"job {args.job_id} is not set aside")
    done = "goes on, if this release can read its history" if resume else "stays failed"
    print_answer(args.output, found, f"Job {found.job_id} {done}.")
    return OK


async def _found(quarantine: Quarantine, text: str) -> QuarantinedJob | None:
    """The job that is set aside and has this id, or alone has one that begins so."""
    beginning = text.lower().replace("-", "")
    if len(beginning) < _SHORTEST:
        return None
    found = [one for one in await quarantine.all() if one.job_id.hex.startswith(beginning)]
    if len(found) > 1:
        raise Ambiguous(f"{len(found)} jobs that are set aside have an id that begins with {text}")
    return found[0] if found else None


def _table(found: Sequence[QuarantinedJob]) -> Table:
    table = Table("JOB", "TENANT", "SINCE", "STATE", "READER", "VERSION", "REASON", box=None)
    for one in found:
        since = f"{one.since:%Y-%m-%d %H:%M:%S}"
        cells = (str(one.job_id), one.tenant, since, one.state, one.reader, str(one.at_version))
        table.add_row(*cells, escape(one.reason))
    return table
