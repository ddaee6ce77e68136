"""The documentation says what the code says, wherever a table can be compared.

`python -m tests.unit.test_docs` prints the tables of settings and of metrics, to be pasted into docs/operations.md.
"""

import re
import sys
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.metrics import MetricWrapperBase

import api.metrics
import dreamforge.loop_monitor
import eventstore.metrics
import orchestrator.quarantine_log
import runners.metrics
from api.app import ROUTES
from api.errors import STATUS_BY_ERROR_CODE
from dreamforge.settings import VARIABLES_BY_FIELD, Settings, Variable
from orchestrator.events import AnchorSigned, JobEvent, KeyEvent, ModelEvent, OutboxEvent
from tests.kit import project_root

DOCS = project_root() / "docs"
PAGES = sorted([project_root() / "README.md", *DOCS.rglob("*.md")])
HEADING = "| variable | what it sets | accepted | default |"
MODULES_WITH_METRICS = (
    *(api.metrics, eventstore.metrics, orchestrator.quarantine_log, runners.metrics),
    dreamforge.loop_monitor,
)
METRICS_HEADING = "| metric | type | labels | what it means |"


def settings_table() -> list[str]:
    """The table of all settings, in the order in which the code lists them."""
    defaults = Settings()
    rows = [_row(var, getattr(defaults, field)) for field, var in VARIABLES_BY_FIELD.items()]
    return [HEADING, "|---|---|---|---|", *rows]


def _row(var: Variable, default: Any) -> str:
    old = f" Old name: `{var.alias}`." if var.alias else ""
    accepted = var.value_format.requirement.replace("|", r"\|")
    return f"| `{var.name}` | {var.description}{old} | {accepted} | {_written(default)} |"


def _written(default: Any) -> str:
    """A default as it would be written in the environment."""
    match default:
        case None:
            return "unset"
        case bool():
            return f"`{default:d}`"
        case float():
            return f"`{default:g}`"
        case ():
            return "unset"
        case dict():
            return f"`{','.join(f'{name}:{value:g}' for name, value in default.items())}`"
        case _:
            return f"`{default}`"


def metrics_table() -> list[str]:
    """The table of all metrics, module by module."""
    found = [
        metric
        for module in MODULES_WITH_METRICS
        for member in vars(module).values()
        for metric in (member.values() if isinstance(member, dict) else [member])
        if isinstance(metric, MetricWrapperBase)
    ]
    return [METRICS_HEADING, "|---|---|---|---|", *map(_metric_row, found)]


def _metric_row(metric: MetricWrapperBase) -> str:
    name = f"{metric._name}_total" if metric._type == "counter" else metric._name
    labels = ", ".join(f"`{label}`" for label in metric._labelnames)
    return f"| `{name}` | {metric._type} | {labels} | {metric._documentation} |"


def table(page: Path, heading: str) -> list[str]:
    """The lines of the table that begins with a heading."""
    lines = page.read_text("utf-8").splitlines()
    assert heading in lines, f"{page} has no table {heading}"
    begin = lines.index(heading)
    end = next((n for n, line in enumerate(lines[begin:], begin) if not line.startswith("|")), len(lines))
    return lines[begin:end]


def cells(page: Path, heading: str) -> list[list[str]]:
    """The cells of a table's rows, but for its heading."""
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in table(page, heading)[2:]]


def test_the_settings_table_is_the_codes() -> None:
    assert table(DOCS / "operations.md", HEADING) == settings_table(), (
        "paste what `python -m tests.unit.test_docs` prints into docs/operations.md"
    )


def test_the_metrics_table_is_the_codes() -> None:
    assert table(DOCS / "operations.md", METRICS_HEADING) == metrics_table(), (
        "paste what `python -m tests.unit.test_docs` prints into docs/operations.md"
    )


def test_the_contract_lists_every_route_and_no_other() -> None:
    listed = {row[0].strip("`") for row in cells(DOCS / "contract.md", "| route | answers |")}
    served = {
        f"{method} {re.sub('{(job|model)_id}', '{id}', route.path)}"
        for route in ROUTES
        for method in (route.methods or set()) - {"HEAD"}
    }
    assert listed == served


def test_the_contracts_errors_have_the_status_that_is_sent() -> None:
    listed = {row[1].strip("`"): int(row[0]) for row in cells(DOCS / "contract.md", "| status | code | when |")}
    assert listed == STATUS_BY_ERROR_CODE


def test_the_contract_names_every_event() -> None:
    listed = [row[0].strip("`") for row in cells(DOCS / "contract.md", "| code | when | data |")]
    assert listed == [body.code for body in (JobEvent | ModelEvent | KeyEvent | OutboxEvent | AnchorSigned).__args__]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(project_root()).as_posix())
def test_every_link_within_the_checkout_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text("utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page}: {target} does not exist"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(project_root()).as_posix())
def test_every_path_that_a_page_names_exists(page: Path) -> None:
    packages = "api|artifacts|dreamforge|eventstore|model_registry|orchestrator|projections|runners|tests|scripts"
    for named in re.findall(rf"`((?:{packages})/[\w/.-]*)`", page.read_text("utf-8")):
        assert (project_root() / named).exists(), f"{page}: {named} does not exist"


def test_every_test_that_the_acceptance_names_exists() -> None:
    named = re.findall(r"`(tests/\S+\.py)::(\w+)`", (DOCS / "acceptance.md").read_text("utf-8"))
    assert len(named) >= 20
    for path, name in named:
        source = (project_root() / path).read_text("utf-8")
        assert re.search(rf"^(async )?def {name}\(", source, re.MULTILINE), f"{path} has no test {name}"


def test_decisions_are_numbered_without_a_gap_and_dated() -> None:
    decisions = sorted((DOCS / "adr").glob("*.md"))
    assert [int(page.name[:4]) for page in decisions] == list(range(1, len(decisions) + 1))
    for page in decisions:
        lines = page.read_text("utf-8").splitlines()
        assert lines[0].startswith(f"# {int(page.name[:4])}. ")
        assert re.fullmatch(r"Date: \d{4}-\d\d-\d\d", lines[2])
        for heading in ("## Context", "## Decision", "## Consequences"):
            assert heading in lines, f"{page} has no part {heading}"


if __name__ == "__main__":
    sys.stdout.write("\n".join([*settings_table(), "", *metrics_table(), ""]))


def test_the_index_of_the_architecture_names_what_is_there() -> None:
    """Given a row of "Where is what", then its files exist, and each name stands in one of them."""
    rows = cells(DOCS / "architecture.md", "| question | file | function or type |")
    assert len(rows) >= 40
    for question, files, names in rows:
        paths = [project_root() / path for path in re.findall(r"`([\w/.]+\.(?:py|sql))`", files + names)]
        assert paths, question
        text = "\n".join(path.read_text("utf-8") for path in paths)
        for name in re.findall(r"`([\w.]+)`", names):
            part = name if name.startswith(("eventstore.", "projector.")) and "sql" in files else name.split(".")[-1]
            assert name.endswith((".py", ".sql")) or part in text, f"{question}: no {name} in {files}"
