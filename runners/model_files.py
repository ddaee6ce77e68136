"""Which of a model's files may run code of their own."""

from collections.abc import Iterable
from pathlib import PurePath

RISKY = {".bin", ".ckpt", ".pkl", ".pt", ".pth", ".py"}
"""What may run code of its own when it is opened: pickles and programs."""


def risky(paths: Iterable[PurePath]) -> list[PurePath]:
    """Those of some files that may run code when they are opened, in order."""
    return sorted(path for path in paths if path.suffix.lower() in RISKY)
