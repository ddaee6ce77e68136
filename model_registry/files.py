"""A model's files, and which of them may run code of their own."""

from collections.abc import Iterable, Iterator
from pathlib import Path, PurePath

RISKY = {".bin", ".ckpt", ".pkl", ".pt", ".pth", ".py"}
"""What may run code of its own when it is opened: pickles and programs."""


HUB_NOTES = PurePath(".cache/huggingface")
"""What huggingface_hub notes of its own downloads; no part of a model."""


def model_files(folder: Path) -> Iterator[Path]:
    """Every file below a model's folder; folders are entered by no link."""
    notes = folder / HUB_NOTES
    return (path for path in folder.rglob("*") if not path.is_relative_to(notes) and path.is_file())


def risky(paths: Iterable[PurePath]) -> list[PurePath]:
    """Those of some files that may run code when they are opened, in order."""
    return sorted(path for path in paths if path.suffix.lower() in RISKY)
