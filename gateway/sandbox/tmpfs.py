"""Bounds on the tmpfs that firejail mounts in a cell, which by itself take half of the machine's memory."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from gateway.errors import SandboxUnavailable

# linux/mount.h and the common syscall numbers (Linux 5.2)
_FSCONFIG, _FSPICK = 431, 433
_SET_STRING, _RECONFIGURE = 1, 7
_AT_FDCWD, _PICK_CLOEXEC = -100, 1

_libc = ctypes.CDLL(None, use_errno=True)


def bound(pid: int, place: str, *, size_bytes: int, inodes: int) -> None:
    """Set the size of the tmpfs that a process of a cell sees at a place.

    The file system itself is reconfigured, through /proc/PID/root: no mount namespace has to be entered.

    Raises:
        SandboxUnavailable: what is there is not the cell's own, or no tmpfs, or the kernel refuses.
    """
    path = Path(f"/proc/{pid}/root{place}")
    if path.lstat().st_dev == Path(place).lstat().st_dev:
        raise SandboxUnavailable(f"{place} in the cell is the host's own.", reason="not_confined")
    picked = _check(_libc.syscall(_FSPICK, _AT_FDCWD, str(path).encode(), _PICK_CLOEXEC), path)
    try:
        for key, value in (("size", size_bytes), ("nr_inodes", inodes)):
            text = str(value).encode()
            _check(_libc.syscall(_FSCONFIG, picked, _SET_STRING, key.encode(), text, 0), path)
        _check(_libc.syscall(_FSCONFIG, picked, _RECONFIGURE, None, None, 0), path)
    finally:
        os.close(picked)


def _check(result: int, path: Path) -> int:
    if result < 0:
        reason = os.strerror(ctypes.get_errno())
        raise SandboxUnavailable(f"{path} cannot be bounded: {reason}.", reason="no_bound")
    return result
