"""DF_HOME: the directory with all data of the embedded services."""

import fcntl
import os
import secrets
from pathlib import Path

import msgspec

from dreamforge.embedded.errors import EmbeddedError, HomeInUse


class Home:
    """A home directory, which one process at a time may lock. The operating system releases a dead process's lock."""

    def __init__(self, path: Path) -> None:
        self.path = path.expanduser().resolve()
        self._lock: int | None = None

    def lock(self) -> None:
        """Lock the home for this process; create it if needed. Raises `HomeInUse`. A second call does nothing."""
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

    def was_locked_before(self) -> bool:
        """Whether a process has ever locked it. If not, `lock` would create it."""
        return (self.path / "lock").exists()

    def release(self) -> None:
        """Release the lock. A second call does nothing."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def write_private_file(path: Path, text: str) -> None:
    """Replace a file atomically. Only its owner can read it."""
    partial = path.with_name(f"{path.name}.partial")
    partial.unlink(missing_ok=True)
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def read_or_create_secret(path: Path) -> str:
    """The secret in a file; a new random one if the file does not exist. Hex digits, which need no quoting."""
    if not path.exists():
        write_private_file(path, secrets.token_hex(24))
    return path.read_text("utf-8").strip()


def read_ports(path: Path) -> list[int]:
    """The ports that an earlier run saved in a file; empty if there is none."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=list[int])
    except (FileNotFoundError, msgspec.DecodeError):
        return []


def write_ports(path: Path, ports: list[int]) -> None:
    """Save ports for the next run."""
    write_private_file(path, msgspec.json.encode(ports).decode())
