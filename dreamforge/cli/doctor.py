"""What `dreamforge doctor` answers."""

import argparse
from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table

from dreamforge.cli.console import FAILED, OK, complain, print_answer
from dreamforge.cli.handlers import set_handler
from dreamforge.operations.doctor import Finding, examine
from dreamforge.settings import Settings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `dreamforge doctor`."""
    parser.add_argument("--output", choices=("table", "json"), default="table", help="the form of the answer")
    parser.add_argument("--json", dest="output", action="store_const", const="json", help="the same as --output json")
    set_handler(parser, _doctor, log_level="error")


def _doctor(args: argparse.Namespace, settings: Settings) -> int:
    findings = examine(settings)
    print_answer(args.output, findings, _table(findings))
    ill = [one.check for one in findings if one.state == "bad"]
    return complain(FAILED, f"not well: {', '.join(ill)}") if ill else OK


def _table(findings: Sequence[Finding]) -> Table:
    table = Table("CHECK", "STATE", "FOUND", "WHAT TO DO", box=None)
    colours = {"ok": "green", "warning": "yellow", "bad": "red"}
    for one in findings:
        table.add_row(one.check, f"[{colours[one.state]}]{one.state}[/]", escape(one.found), escape(one.advice))
    return table
