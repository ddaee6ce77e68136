"""Are the packages that would be imported ours? Their names are common, and another distribution may bring the same."""

import importlib.util
from importlib import metadata
from pathlib import Path

PACKAGES = ("api", "artifacts", "eventstore", "model_registry", "orchestrator", "projections", "runners")
_ROOT = Path(__file__).resolve().parent.parent
_WAY_OUT = (
    "Install Dream Forge into an environment of its own, and start it where neither PYTHONPATH nor the current folder "
    "has such a package."
)


def shadowed(root: Path = _ROOT) -> str | None:
    """What keeps our packages from being imported, for the person who starts a command; None where nothing does.

    root: the folder that they lie in.
    """
    for name in PACKAGES:
        found, ours = _origin(name), root / name / "__init__.py"
        if found != ours:
            origin = f"it would be imported from {found.parent}" if found else "it can't be found"
            return f"the package {name!r} is not that of Dream Forge, {ours.parent}: {origin}. {_WAY_OUT}"
    # An installer lets one distribution write over another's files, which then lie in the right place.
    for distribution in metadata.distributions(name="dream-forge", path=[str(root)]):
        for file in distribution.files or ():
            if file.name == "__init__.py" and file.size is not None and file.size != _size(root / file):
                return f"{root / file} is not Dream Forge's any more: another distribution wrote over it. {_WAY_OUT}"
    return None


def _origin(name: str) -> Path | None:
    spec = importlib.util.find_spec(name)
    if spec is None:
        return None
    if spec.origin is not None:
        return Path(spec.origin).resolve()
    # A folder without an __init__.py.
    return next((Path(origin).resolve() / "__init__.py" for origin in spec.submodule_search_locations or ()), None)


def _size(file: Path) -> int | None:
    return file.stat().st_size if file.exists() else None
