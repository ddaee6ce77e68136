"""Checks that Dream Forge's packages are not shadowed: their names are common, and other distributions may use them."""

import importlib.util
from importlib import metadata
from pathlib import Path

PACKAGE_NAMES = ("api", "artifacts", "eventstore", "model_registry", "orchestrator", "projections", "runners")
_PACKAGES_FOLDER = Path(__file__).resolve().parent.parent
_ADVICE = (
    "Install Dream Forge into an environment of its own, and start it where neither PYTHONPATH nor the current folder "
    "has such a package."
)


def find_shadowed_package(root: Path = _PACKAGES_FOLDER) -> str | None:
    """Which package is shadowed and what to do, as a message; None if none is. root: the folder of the packages."""
    for name in PACKAGE_NAMES:
        actual, expected = _package_init_path(name), root / name / "__init__.py"
        if actual != expected:
            origin = f"it would be imported from {actual.parent}" if actual else "it can't be found"
            return f"the package {name!r} is not that of Dream Forge, {expected.parent}: {origin}. {_ADVICE}"
    # An installer may overwrite files of one distribution with those of another, at the same path.
    for distribution in metadata.distributions(name="dream-forge", path=[str(root)]):
        for file in distribution.files or ():
            if file.name == "__init__.py" and file.size is not None and file.size != _file_size(root / file):
                return f"{root / file} is not Dream Forge's any more: another distribution wrote over it. {_ADVICE}"
    return None


def _package_init_path(name: str) -> Path | None:
    spec = importlib.util.find_spec(name)
    if spec is None:
        return None
    if spec.origin is not None:
        return Path(spec.origin).resolve()
    # A namespace package.
    return next((Path(origin).resolve() / "__init__.py" for origin in spec.submodule_search_locations or ()), None)


def _file_size(file: Path) -> int | None:
    return file.stat().st_size if file.exists() else None
