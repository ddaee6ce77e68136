"""In a folder without a home no command answers for an empty one, but says what to set; `up` and `demo` make one."""

import argparse
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from PIL import Image

from dreamforge.cli import main as cli
from dreamforge.settings import VARIABLES_BY_FIELD
from eventstore.integrity.bundle import BundleHeader, BundleWriter
from eventstore.integrity.verifier import AuditEvent
from tests import memory_log
from tests.kit import NOON

JOB = "018f0000-0000-7000-8000-000000000001"
ROLES = ("api", "orchestrator", "projector", "runner", "schema install")
OF_THE_DATABASE = (
    f"audit diff {JOB} 1 2",
    f"audit export {JOB} -o out.bundle",
    f"audit replay {JOB}",
    f"audit show {JOB}",
    f"audit verify {JOB}",
    "audit verify --all",
    f"jobs quarantine fail {JOB}",
    "jobs quarantine list",
    f"jobs quarantine release {JOB}",
    f"jobs quarantine show {JOB}",
    "keys create somebody",
    "keys list",
    "keys revoke somebody",
    "models add castles --kind generator",
    "models disable castles",
    "models enable castles",
    "models list",
    "models show castles",
    "models verify",
    "outbox purge",
    "outbox purge --yes",
    "outbox rebuild",
    "outbox status",
    "projections pause",
    "projections rebuild",
    "projections rebuild --dry-run",
    "projections resume",
    "projections rollback",
    "projections status",
    "projections verify",
    "top --once",
)
OF_BOTH = (
    "audit anchor",
    f"audit erase {JOB}",
    f"audit reproduce {JOB}",
    "audit scrub",
    f"audit verify {JOB} --artifacts",
    "audit verify --all --artifacts",
    "doctor",
)
OF_THE_API = (
    f"jobs artifacts {JOB}",
    f"jobs cancel {JOB}",
    "jobs create --prompt x",
    f"jobs events {JOB}",
    "jobs list",
    f"jobs logs {JOB}",
    f"jobs retry {JOB}",
    f"jobs show {JOB}",
    f"jobs watch {JOB}",
)
OF_NOTHING = {"artifact show plain.png": 4, "audit key new.key": 0, "audit verify whole.bundle": 0}
"""What needs neither, with what it exits with."""
MAKES_ONE = ("up",)


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder of somebody who has no settings, with some files to work on."""
    for var in VARIABLES_BY_FIELD.values():
        for name in var.names:
            monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("dreamforge.logs.configure_logging", lambda *_: None)
    monkeypatch.setenv("DF_API_BASE", "http://127.0.0.1:9")
    monkeypatch.chdir(tmp_path)
    Path("castles").mkdir()
    Path("castles/weights.safetensors").write_bytes(b"weights")
    Image.new("RGB", (8, 8)).save("plain.png")
    rows = memory_log.read(memory_log.ordered(memory_log.log(random.Random(5), 12, streams=3)))
    Path("whole.bundle").write_bytes(bundle(rows))
    Path("empty.bundle").write_bytes(bundle([]))
    return tmp_path


def bundle(rows: Sequence[AuditEvent]) -> bytes:
    """An exported log."""
    writer = BundleWriter(BundleHeader(log=memory_log.LOG, exported_at=NOON, stream=None, since=NOON, private=False))
    return b"".join([writer.header_line(), *map(writer.event_line, rows), writer.end_line()])


def commands(parser: argparse.ArgumentParser, *words: str) -> Iterator[str]:
    """Every command that there is."""
    deeper = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    for action in deeper:
        for name, one in action.choices.items():
            yield from commands(one, *words, name)
    if not deeper:
        yield " ".join(words)


def test_every_command_has_its_place_in_these_lists() -> None:
    known = [*ROLES, *OF_THE_DATABASE, *OF_BOTH, *OF_THE_API, *OF_NOTHING, *MAKES_ONE]
    for command in commands(cli._build_parser()):
        assert any(line == command or line.startswith(f"{command} ") for line in known), f"{command} is not classed"


@pytest.mark.parametrize("command", [*ROLES, *OF_THE_DATABASE, *OF_BOTH, *OF_THE_API])
def test_a_command_without_a_home_says_what_to_set_and_makes_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    if command == "audit anchor":
        assert cli.main(["audit", "key", "anchor.key"]) == 0
        monkeypatch.setenv("DF_ANCHOR_KEY", "anchor.key")
    before = sorted(folder.rglob("*"))
    assert cli.main(command.split()) == 3
    assert sorted(folder.rglob("*")) == before
    said = capsys.readouterr()
    wanted = "DF_API_BASE" if command in OF_THE_API else "DF_DB_URL"
    if command in {"api", "runner"}:
        wanted = "DF_S3_ENDPOINT"
    assert wanted in said.err + said.out


@pytest.mark.parametrize("command", OF_BOTH)
def test_a_command_with_a_database_alone_asks_for_the_object_store(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    monkeypatch.setenv("DF_DB_URL", "postgresql://nobody@127.0.0.1:9/nothing")
    if command == "audit anchor":
        assert cli.main(["audit", "key", "anchor.key"]) == 0
        monkeypatch.setenv("DF_ANCHOR_KEY", "anchor.key")
    assert cli.main(command.split()) == 3
    assert "Set DF_S3_ENDPOINT, DF_S3_ACCESS_KEY and DF_S3_SECRET_KEY" in capsys.readouterr().err
    assert not (folder / ".dreamforge").exists()


@pytest.mark.parametrize("command", OF_NOTHING)
def test_what_needs_no_home_needs_none(folder: Path, command: str) -> None:
    assert cli.main(command.split()) == OF_NOTHING[command]
    assert not (folder / ".dreamforge").exists()


def test_a_folder_that_is_no_home_does_not_become_one(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / ".dreamforge").mkdir()
    assert cli.main(["keys", "list"]) == 3
    assert str(folder / ".dreamforge") in capsys.readouterr().err
    assert list((folder / ".dreamforge").iterdir()) == []


@pytest.mark.usefixtures("folder")
def test_nothing_is_never_intact(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], db_url: str
) -> None:
    """Given no event at all, then no verification succeeds: it may be the wrong database."""
    monkeypatch.setenv("DF_DB_URL", db_url)
    for command in ("audit verify --all", "audit verify empty.bundle", "projections verify", "models verify"):
        assert cli.main(command.split()) == 1
        said = capsys.readouterr()
        assert "Intact" not in said.out
        assert "agrees" not in said.out
        assert "nothing was" in said.err
