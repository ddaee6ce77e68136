"""The mutants of `make mutants` and `make fixes` still fit the code: each edit changes one place of it."""

import importlib
from pathlib import Path

import pytest

from tests.kit import project_root


@pytest.mark.parametrize(("script", "table"), [("mutants", "MUTANTS"), ("fixes", "FIXES")])
def test_every_mutant_names_one_place(script: str, table: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given code that has changed since, then a mutant that breaks nothing any more is told."""
    monkeypatch.syspath_prepend(project_root() / "scripts")
    mutants = getattr(importlib.import_module(script), table)
    lost = [
        mutant.name
        for mutant in mutants
        if any(_text(path).count(old) != 1 for path, old, _ in mutant.edits())
        or not all((project_root() / word).exists() for word in mutant.tests.split() if word.startswith("tests/"))
    ]
    assert lost == []


def _text(path: str) -> str:
    return Path(project_root() / path).read_text("utf-8")
