"""DF_HOME: the one directory that holds all data of the embedded services."""

import fcntl
import os
import secrets
from pathlib import Path

import msgspec

from dreamforge.embedded.errors import EmbeddedError, HomeInUse


class Home:
    """A home, made on demand, that one process at a time may lock; the lock falls with its process."""

    def __init__(self, path: Path) -> None:
        self.path = path.expanduser().resolve()
        self._lock: int | None = None

    def lock(self) -> None:
        """Take the home for this process, or raise HomeInUse. A second call does nothing."""
        if self._lock is not None:
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise EmbeddedError(f"DF_HOME {self.path} cannot be used ({error}): set DF_HOME to another one.") from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.read(handle, 32).decode().strip() or "unknown"
            os.close(handle)
            raise HomeInUse(
                f"DF_HOME {self.path} is in use by process {pid}: stop that one, or set DF_HOME to another directory."
            ) from None
        os.truncate(handle, 0)
        os.pwrite(handle, str(os.getpid()).encode(), 0)
        self._lock = handle

    def in_use_once(self) -> bool:
        """Has any process locked it yet? Until then a lock would make it."""
        return (self.path / "lock").exists()

    def release(self) -> None:
        """Give the home back. A second call does nothing."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def write(path: Path, text: str) -> None:
    """Replace a file, readable by its owner alone, in one step that a kill cannot halve."""
    partial = path.with_name(f"{path.name}.partial")
    partial.unlink(missing_ok=True)
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def secret(path: Path) -> str:
    """The secret kept in a file, drawn when there is none yet; its characters need no quoting anywhere."""
    if not path.exists():
        write(path, secrets.token_hex(24))
    return path.read_text("utf-8").strip()


def ports(path: Path) -> list[int]:
    """The ports noted in a file by an earlier run; none if there is no such note."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=list[int])
    except (FileNotFoundError, msgspec.DecodeError):
        return []


def note_ports(path: Path, numbers: list[int]) -> None:
    """Note ports for the next run."""
    write(path, msgspec.json.encode(numbers).decode())
