"""The tests that may be skipped, and why. Any other skipped test fails the session."""

import fnmatch

import pytest

LISTED = {
    "tests/embedded/test_postgres.py::test_it_listens_on_loopback_alone": "this container hides the sockets of other *",
    "tests/embedded/test_unprivileged.py::*": "only root has another user to become",
    "tests/flow/test_pooler.py::*": "Debian's package pgbouncer is not installed",
    "tests/http/test_browser.py::*": "* is missing: install Debian's chromium",
    "tests/store/*": "Debian's package postgresql-15 is not installed",
}
"""Patterns of tests, with the pattern of the reason that each may be skipped for."""


class Skips:
    """A pytest plugin: a session with a skipped test that is not listed fails, and says which."""

    def __init__(self) -> None:
        self.unlisted: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """One phase of one test."""
        self._record(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """One file, which may skip all of its tests at once."""
        self._record(report)

    def _record(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if not report.skipped:
            return
        text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reason = text.removeprefix("Skipped: ")
        allowed = (why for tests, why in LISTED.items() if fnmatch.fnmatchcase(report.nodeid, tests))
        if not any(fnmatch.fnmatchcase(reason, why) for why in allowed):
            self.unlisted.append(f"{report.nodeid}: {reason}")

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Name them."""
        if self.unlisted:
            terminalreporter.section("skipped, and not listed in tests/skips.py", red=True)
            for line in self.unlisted:
                terminalreporter.write_line(line)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Fail the session."""
        if self.unlisted and session.exitstatus in {pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED}:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
