"""The hashed requirement files: complete, in the ranges of pyproject.toml, and of one mind."""

import re
import tomllib
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.kit import project_root

FILES = {"default": [], "dev": ["dev"], "diffusers": ["diffusers"], "gan": ["gan", "diffusers"]}
"""The files, and the extras that each holds."""
UNHASHED = {"torch", "torchvision", "triton"}
PROJECT: dict[str, Any] = tomllib.loads((project_root() / "pyproject.toml").read_text("utf-8"))


def locked(name: str) -> Mapping[str, list[Requirement]]:
    """The requirements of a file, by package: several where Pythons or platforms differ."""
    found: dict[str, list[Requirement]] = defaultdict(list)
    for block in _blocks(name):
        requirement = Requirement(block.split("\\", 1)[0])
        found[canonicalize_name(requirement.name)].append(requirement)
    return found


def _blocks(name: str) -> list[str]:
    text = (project_root() / "requirements" / f"{name}.txt").read_text("utf-8")
    return [block for block in re.split(r"^(?=\S)", text, flags=re.MULTILINE) if block and not block.startswith("#")]


@pytest.mark.parametrize(("name", "extras"), FILES.items())
def test_a_file_pins_what_the_project_needs_and_its_build_backend(name: str, extras: list[str]) -> None:
    """Given a dependency that was added or whose range has changed, then `make lock` is asked for."""
    pins, project = locked(name), PROJECT["project"]
    asked = [*PROJECT["build-system"]["requires"], *project["dependencies"]]
    asked += [one for extra in extras for one in project["optional-dependencies"][extra]]
    for requirement in map(Requirement, asked):
        if requirement.name == project["name"] or requirement.name in UNHASHED:
            continue
        versions = [str(pin.specifier).removeprefix("==") for pin in pins[canonicalize_name(requirement.name)]]
        assert versions, f"{requirement} is not in requirements/{name}.txt: run `make lock`"
        for version in versions:
            assert requirement.specifier.contains(version), f"{requirement} excludes {version}: run `make lock`"


@pytest.mark.parametrize("name", FILES)
def test_every_requirement_is_pinned_and_hashed(name: str) -> None:
    assert len(_blocks(name)) > 40
    for block in _blocks(name):
        requirement, *hashes = block.rstrip().split(" \\\n")
        assert re.fullmatch(r"[a-z0-9-]+==[^ ]+( ; .+)?", requirement), requirement
        assert hashes, requirement
        assert all(re.fullmatch(r" {4}--hash=sha256:[0-9a-f]{64}", one) for one in hashes), requirement


@pytest.mark.parametrize("name", FILES)
def test_no_file_names_an_address_or_what_differs_by_machine(name: str) -> None:
    text = (project_root() / "requirements" / f"{name}.txt").read_text("utf-8")
    assert "://" not in text
    assert not re.search(r"^(torch|torchvision|triton|cuda-\S*|nvidia-\S*)==", text, flags=re.MULTILINE)


def test_the_files_agree() -> None:
    """What one environment has in common with another has the same versions and hashes."""
    together: dict[str, set[tuple[str, ...]]] = defaultdict(set)
    for name in FILES:
        versions = defaultdict(list)
        for block in _blocks(name):
            versions[block.split("==")[0]].append(block)
        for package, found in versions.items():
            together[package].add(tuple(found))
    assert [package for package, found in together.items() if len(found) > 1] == []
