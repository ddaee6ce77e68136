"""The mutants of `make mutants` still fit the code: each breaks one place of it."""

import importlib.util

from tests.kit import project_root


def test_every_mutant_names_one_place() -> None:
    """Given code that has changed since, then a mutant that breaks nothing any more is told."""
    path = project_root() / "scripts" / "mutants.py"
    spec = importlib.util.spec_from_file_location("mutants", path)
    assert spec is not None
    assert spec.loader is not None
    mutants = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(mutants)
    lost = [
        mutant.name
        for mutant in mutants.MUTANTS
        if (project_root() / mutant.path).read_text("utf-8").count(mutant.old) != 1
    ]
    assert lost == []
