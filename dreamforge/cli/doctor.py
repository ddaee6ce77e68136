"""`dreamforge doctor`: prints the findings of the checks."""

import argparse
from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table

from dreamforge.cli import arguments
from dreamforge.cli.console import FAILED, OK, print_message, print_result
from dreamforge.cli.handlers import set_handler
from dreamforge.operations.doctor import Finding, run_checks
from dreamforge.settings import Settings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `dreamforge doctor`."""
    arguments.add_output_option(parser, "the form of the answer")
    set_handler(parser, _handle_doctor, log_level="error")


def _handle_doctor(args: argparse.Namespace, settings: Settings) -> int:
    findings = run_checks(settings)
    print_result(args.output, findings, _findings_table(findings))
    failed = [finding.check for finding in findings if finding.state == "bad"]
    return print_message(FAILED, f"not well: {', '.join(failed)}") if failed else OK


def _findings_table(findings: Sequence[Finding]) -> Table:
    table = Table("CHECK", "STATE", "FOUND", "WHAT TO DO", box=None)
    colours = {"ok": "green", "warning": "yellow", "bad": "red"}
    for finding in findings:
        state = f"[{colours[finding.state]}]{finding.state}[/]"
        table.add_row(finding.check, state, escape(finding.found), escape(finding.advice))
    return table
