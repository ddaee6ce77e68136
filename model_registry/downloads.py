"""Files on their way into the folder of models: fetched or copied, checked, and only then given their names.

Until then a file is called `.part`. Whatever ends a try, the next one goes on at the byte where it ended.
"""

import fcntl
import hashlib
import io
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast

import msgspec
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from model_registry.files import HUB_NOTES
from model_registry.registry import RegistryError


class Download(msgspec.Struct, frozen=True, kw_only=True):
    """A file that shall come. path: relative, with slashes; size: in bytes; digest: lower-case hex.

    as_git: the digest is git's of a blob, SHA-1; else it is SHA-256 of the bytes.
    """

    path: str
    size: int
    digest: str
    as_git: bool = False

    def is_at(self, path: Path) -> bool:
        """Is a file there, and is it this one? Reads it."""
        if not path.is_file() or path.stat().st_size != self.size:
            return False
        hashed = hashlib.sha1(b"blob %d\0" % self.size, usedforsecurity=False) if self.as_git else hashlib.sha256()
        with path.open("rb") as file:
            return hashlib.file_digest(file, lambda: hashed).hexdigest() == self.digest


Fill = Callable[[BinaryIO, Download], None]
"""Appends to a file what it lacks; where it stands is how much of it is there."""


def receive(folder: Path, files: Sequence[Download], fill: Fill) -> None:
    """Bring files into a folder, with a bar on a terminal; those that are there already are left alone.

    Raises `RegistryError` where a path leads out of the folder, another process brings the same file, or what came is
    not what should have come, and `OSError`.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    console = Console(stderr=True)
    for file in files:
        path = PurePosixPath(file.path)
        if path.is_absolute() or ".." in path.parts:
            raise RegistryError(f"{file.path!r} leads out of the model's folder.")
        if path.is_relative_to(HUB_NOTES):
            raise RegistryError(f"{file.path!r} is no place for a model's file: what lies there is not registered.")
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as bars:
        bar = bars.add_task("", total=sum(file.size for file in files))
        done = 0
        for file in files:
            bars.update(bar, description=PurePosixPath(file.path).name, completed=done)
            if not file.is_at(folder / file.path):
                _receive(folder / file.path, file, fill, partial(_show, bars, bar, done))
            done += file.size
        bars.update(bar, completed=done)


def _show(bars: Progress, bar: TaskID, before: int, size: int) -> None:
    bars.update(bar, completed=before + size)


class _Part(io.FileIO):
    """A file that tells how long it is whenever it grows."""

    def __init__(self, path: Path, told: Callable[[int], None]) -> None:
        super().__init__(path, "ab")
        self._told = told

    def write(self, data: bytes) -> int:  # type: ignore[override]  # of all buffers, the only one that is written
        view = memoryview(data)
        while view:
            view = view[super().write(view) :]
        self._told(self.tell())
        return len(data)


def _receive(path: Path, file: Download, fill: Fill, told: Callable[[int], None]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.part")
    with _Part(unfinished, told) as part:
        try:
            fcntl.flock(part, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RegistryError(f"another process is bringing {path}; wait for it.") from None
        if part.tell() > file.size:
            part.truncate(0)
            part.seek(0)
        fill(cast("BinaryIO", part), file)
        if not file.is_at(unfinished):
            unfinished.unlink()
            raise RegistryError(f"{file.path} did not come as it should have; what came is thrown away. Try again.")
        unfinished.replace(path)
