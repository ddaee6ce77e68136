"""Transfers files into the models folder: fetch or copy, verify, rename.

Until it is verified, a file has the suffix `.part`. After an interruption, the next call resumes at the last byte.
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

from model_registry.files import HUB_CACHE_FOLDER
from model_registry.registry import RegistryError


class ExpectedFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file to transfer. path: relative, with slashes. size: in bytes. digest: SHA-256, lower-case hex.

    is_git_blob_sha1: the digest is the SHA-1 of a git blob instead.
    """

    path: str
    size: int
    digest: str
    is_git_blob_sha1: bool = False

    def matches(self, path: Path) -> bool:
        """Whether the path is a file with this size and digest. Reads the whole file."""
        if not path.is_file() or path.stat().st_size != self.size:
            return False
        hashed = (
            hashlib.sha1(b"blob %d\0" % self.size, usedforsecurity=False) if self.is_git_blob_sha1 else hashlib.sha256()
        )
        with path.open("rb") as file:
            return hashlib.file_digest(file, lambda: hashed).hexdigest() == self.digest


AppendMissingBytes = Callable[[BinaryIO, ExpectedFile], None]
"""Appends the missing bytes to a file; its position is the number of bytes that exist."""


def transfer_files(folder: Path, files: Sequence[ExpectedFile], append_missing_bytes: AppendMissingBytes) -> None:
    """Transfer files into a folder, with a progress bar on a terminal. Files that exist and match are skipped.

    Raises `OSError`, and `RegistryError` if a path leads out of the folder, another process transfers the same file, or
    the received bytes do not match.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    console = Console(stderr=True)
    for file in files:
        path = PurePosixPath(file.path)
        if path.is_absolute() or ".." in path.parts:
            raise RegistryError(f"{file.path!r} leads out of the model's folder.")
        if path.is_relative_to(HUB_CACHE_FOLDER):
            raise RegistryError(
                f"{file.path!r} can't be a model's file: a file in {HUB_CACHE_FOLDER} is not registered."
            )
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("", total=sum(file.size for file in files))
        done = 0
        for file in files:
            progress.update(bar, description=PurePosixPath(file.path).name, completed=done)
            if not file.matches(folder / file.path):
                _transfer_file(
                    folder / file.path, file, append_missing_bytes, partial(_update_bar, progress, bar, done)
                )
            done += file.size
        progress.update(bar, completed=done)


def _update_bar(progress: Progress, bar: TaskID, completed_bytes: int, file_bytes: int) -> None:
    progress.update(bar, completed=completed_bytes + file_bytes)


class _PartFile(io.FileIO):
    """A file that reports its size after each write."""

    def __init__(self, path: Path, on_growth: Callable[[int], None]) -> None:
        super().__init__(path, "ab")
        self._on_growth = on_growth

    def write(self, data: bytes) -> int:  # type: ignore[override]  # the only kind of buffer that is written
        view = memoryview(data)
        while view:
            view = view[super().write(view) :]
        self._on_growth(self.tell())
        return len(data)


def _transfer_file(
    path: Path, expected_file: ExpectedFile, append_missing_bytes: AppendMissingBytes, on_growth: Callable[[int], None]
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.part")
    with _PartFile(unfinished, on_growth) as part:
        try:
            fcntl.flock(part, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RegistryError(f"another process is bringing {path}; wait for it.") from None
        if part.tell() > expected_file.size:
            part.truncate(0)
            part.seek(0)
        append_missing_bytes(cast("BinaryIO", part), expected_file)
        if not expected_file.matches(unfinished):
            unfinished.unlink()
            raise RegistryError(
                f"{expected_file.path} did not come as it should have; what came is thrown away. Try again."
            )
        unfinished.replace(path)
