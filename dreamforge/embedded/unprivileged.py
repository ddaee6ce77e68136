"""Runs a program as another user, also if that user has no access to the program's directory.

PostgreSQL does not run as root. Its program and data may be below directories that only root can enter, such as a clone
in /root, and this module must not change their permissions. The process therefore keeps one capability of root, to
enter them. It is an ambient capability, so that the program's child processes inherit it.

This file is a module and, run by `python -I`, the launcher: it imports only the standard library.
"""

import ctypes
import os
import pwd
import stat
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

_DAC_OVERRIDE = 1
_DAC_READ_SEARCH = 2

_PR_GET_SECUREBITS = 27
_PR_SET_SECUREBITS = 28
_NO_SETUID_FIXUP = 1 << 2
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_RAISE = 2
_CAPABILITY_VERSION_3 = 0x20080522


class Account(NamedTuple):
    """A user to run as."""

    uid: int
    gid: int


def account_for(data_folder: Path) -> Account | None:
    """The user that owns a data directory and runs its server; None (this user) unless this process is root."""
    if os.geteuid() != 0:
        return None
    if data_folder.exists() and (owner := data_folder.stat()).st_uid != 0:
        return Account(owner.st_uid, owner.st_gid)
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(entry.pw_uid, entry.pw_gid)
    return Account(65534, 65534)


def change_owner(directory: Path, account: Account) -> None:
    """Change the owner of a directory and its content to a user, unless the user owns it already."""
    if directory.stat().st_uid == account.uid:
        return
    for parent, folders, files in os.walk(directory):
        for name in (*folders, *files):
            os.lchown(os.path.join(parent, name), *account)  # noqa: PTH118 - bare strings, as os.walk gives them
    # Last: after a kill, the directory still belongs to root, and the next run starts over.
    os.lchown(directory, *account)


def command_as_user(command: Sequence[str | Path], account: Account, readable_paths: Iterable[Path]) -> list[str]:
    """The command that runs a command as a user. readable_paths: those that the user must be able to read."""
    capabilities = ",".join(map(str, _needed_capabilities(account, Path(command[0]), readable_paths)))
    launcher = [sys.executable, "-I", "-S", __file__, str(account.uid), str(account.gid), capabilities]
    return [*launcher, *map(str, command)]


def _needed_capabilities(account: Account, program: Path, readable_paths: Iterable[Path]) -> tuple[int, ...]:
    """Capabilities of which one is needed, the weakest first; empty if the file permissions suffice."""
    if not _has_file_permission(program, account, 0o1):
        return (_DAC_OVERRIDE,)
    paths = [program, *readable_paths]
    parents = {parent for path in paths for parent in path.absolute().parents}
    if all(_has_file_permission(path, account, 0o4) for path in paths) and all(
        _has_file_permission(path, account, 0o1) for path in parents
    ):
        return ()
    return (_DAC_READ_SEARCH, _DAC_OVERRIDE)


def _has_file_permission(path: Path, account: Account, access_bits: int) -> bool:
    status = path.stat()
    if stat.S_ISDIR(status.st_mode):
        access_bits |= 0o1
    if status.st_uid == account.uid:
        access_bits <<= 6
    elif status.st_gid == account.gid:
        access_bits <<= 3
    return status.st_mode & access_bits == access_bits


def _change_user(account: Account, capabilities: Sequence[int]) -> None:
    """Change this process to another user, with the first of the capabilities that can be kept."""
    libc = ctypes.CDLL(None, use_errno=True)
    if capabilities:
        # Without it, the change of user drops all capabilities, and access(2) ignores kept ones. PostgreSQL uses
        # access(2) to find its programs.
        bits = libc.prctl(_PR_GET_SECUREBITS, 0, 0, 0, 0)
        _raise_if_failed(libc.prctl(_PR_SET_SECUREBITS, bits | _NO_SETUID_FIXUP, 0, 0, 0))
    os.setgroups([])
    os.setgid(account.gid)
    os.setuid(account.uid)
    for capability in capabilities:
        try:
            _keep_capability(libc, capability)
        except OSError:
            if capability == capabilities[-1]:
                raise
        else:
            return


def _keep_capability(libc: ctypes.CDLL, capability: int) -> None:
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    mask = 1 << capability
    sets = (ctypes.c_uint32 * 6)(mask, mask, mask, 0, 0, 0)  # effective, permitted, inheritable; the high words
    _raise_if_failed(libc.capset(header, sets))
    _raise_if_failed(libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, capability, 0, 0))


def _raise_if_failed(libc_result: int) -> None:
    if libc_result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _main(uid: str, gid: str, capabilities: str, *command: str) -> None:
    try:
        _change_user(Account(int(uid), int(gid)), [int(number) for number in capabilities.split(",") if number])
        os.execv(command[0], command)  # noqa: S606 - to become the program is the point
    except OSError as error:
        sys.exit(f"cannot run {command[0]} as user {uid}: {error}")


if __name__ == "__main__":
    _main(*sys.argv[1:])
