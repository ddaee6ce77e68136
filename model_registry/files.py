"""A model's files, and which of them may run code when they are opened."""

from collections.abc import Iterable, Iterator
from pathlib import Path, PurePath

UNSAFE_SUFFIXES = {".bin", ".ckpt", ".pkl", ".pt", ".pth", ".py"}
"""Suffixes of files that may run code when they are opened: pickles and programs."""


HUB_CACHE_FOLDER = PurePath(".cache/huggingface")
"""The folder of huggingface_hub's own download state; not part of a model."""


def find_model_files(folder: Path) -> Iterator[Path]:
    """Every file below a model's folder. Links to folders are not followed."""
    cache = folder / HUB_CACHE_FOLDER
    return (path for path in folder.rglob("*") if not path.is_relative_to(cache) and path.is_file())


def select_unsafe_files(paths: Iterable[PurePath]) -> list[PurePath]:
    """The files that may run code when they are opened, in order."""
    return sorted(path for path in paths if path.suffix.lower() in UNSAFE_SUFFIXES)
