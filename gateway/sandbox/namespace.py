"""What a cell's launcher does to itself between fork and exec: own mounts, cgroup, uid."""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from gateway.models import Limits
from gateway.sandbox.alternatives import SYSTEM as ALTERNATIVES
from gateway.sandbox.users import CellUser

CLONE_NEWNS = 0x00020000
MS_NOSUID, MS_NODEV, MS_NOEXEC = 2, 4, 8
MS_BIND, MS_REC, MS_PRIVATE = 4096, 16384, 1 << 18
MS_NOSYMFOLLOW = 256
MNT_DETACH = 2
F_SETSIG = 10

_libc = ctypes.CDLL(None, use_errno=True)


def mount(source: str, target: Path, kind: str | None, flags: int, options: str = "") -> None:
    """Mount something at a path. Raises OSError."""
    arguments = [text.encode() if text is not None else None for text in (source, str(target), kind)]
    if _libc.mount(*arguments, ctypes.c_ulong(flags), options.encode()):
        errno = ctypes.get_errno()
        raise OSError(errno, os.strerror(errno), str(target))


def unmount(target: Path) -> None:
    """Detach what is mounted at a path, if anything is."""
    _libc.umount2(str(target).encode(), MNT_DETACH)


def own_mounts() -> None:
    """Give this process a mount namespace of its own, from which nothing spreads. Raises OSError."""
    if _libc.unshare(CLONE_NEWNS):
        errno = ctypes.get_errno()
        raise OSError(errno, os.strerror(errno), "unshare")
    mount("none", Path("/"), None, MS_REC | MS_PRIVATE)


@dataclass(frozen=True, slots=True)
class Leash:
    """Has the process that calls it killed by the system when a pipe's last reader is gone.

    The reader is the warden, so no cell outlives it, whoever else dies with it: PDEATHSIG would be cleared
    by firejail's changes of uid. The writing end stays in firejail's own processes; it is closed in the cell.
    """

    writer: int

    def __call__(self) -> None:
        """Tie this process."""
        fcntl.fcntl(self.writer, F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(self.writer, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(self.writer, fcntl.F_SETFL, os.O_WRONLY | os.O_ASYNC)


class Mountable(Protocol):
    """A file system that is no tmpfs."""

    def mount(self, target: Path) -> None:
        """Mount it. Raises OSError."""
        ...


@dataclass(frozen=True, slots=True)
class Entry:
    """The first steps of a privileged launch, whatever the backend; runs in the forked child, as root."""

    user: CellUser
    home: Path
    limits: Limits
    cgroup_files: tuple[Path, ...]
    volume: Mountable | None = None

    def __call__(self) -> None:
        """Enter: mounts that die with the cell, the cgroup before the exec, then the pool user's group."""
        own_mounts()
        if self.volume:
            self.volume.mount(self.home)
        else:
            size = f"size={self.limits.home_bytes},nr_inodes={self.limits.home_inodes}"
            owner = f"mode=0700,uid={self.user.uid},gid={self.user.gid}"
            mount("home", self.home, "tmpfs", MS_NOSUID | MS_NODEV, f"{size},{owner}")
        for file in self.cgroup_files:
            file.write_text(str(os.getpid()))
        os.setgroups([])
        os.setresgid(self.user.gid, self.user.gid, self.user.gid)


@dataclass(frozen=True, slots=True)
class FirejailUser:
    """The last step of a privileged launch with firejail: its own directories, the pool user's real uid."""

    user: CellUser
    settings: Path
    alternatives: Path | None = None

    def __call__(self) -> None:
        """Become the user as far as firejail can: the real uid may not be root's, the effective one must."""
        # its run files would stay behind when its parent is killed: here they vanish with the cell
        mount(
            "firejail", Path("/run/firejail"), "tmpfs", MS_NOSUID | MS_NODEV, "size=4m,mode=0755,uid=0,gid=0"
        )
        mount(str(self.settings), Path("/etc/firejail"), None, MS_BIND)
        if self.alternatives:
            mount(str(self.alternatives), ALTERNATIVES, None, MS_BIND)
        # no SUID bit involved
        os.setresuid(self.user.uid, 0, 0)
