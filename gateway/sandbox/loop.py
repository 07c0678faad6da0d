"""Loop devices and mapped mounts: a file as a file system whose one user is whoever the cell runs as."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import signal
import struct
from dataclasses import dataclass
from pathlib import Path

from gateway.errors import SandboxUnavailable
from gateway.sandbox.namespace import MNT_DETACH, MS_NODEV, MS_NOSUID, mount

# linux/loop.h
LOOP_CONFIGURE, LOOP_GET_STATUS64, LOOP_CTL_GET_FREE = 0x4C0A, 0x4C05, 0x4C82
LO_FLAGS_AUTOCLEAR = 4
# lo_device, lo_inode, lo_rdevice, lo_offset, lo_sizelimit; number, encryption and its key's size, flags;
# three names; lo_init
INFO = struct.Struct("=5Q4I64s64s32s2Q")
# fd, block size, the info, reserved
CONFIG = struct.Struct(f"=2I{INFO.size}s64s")
TRIES = 20

# the calls' numbers are the same on every architecture
SYS_OPEN_TREE, SYS_MOVE_MOUNT, SYS_MOUNT_SETATTR = 428, 429, 442
OPEN_TREE_CLONE, OPEN_TREE_CLOEXEC = 1, os.O_CLOEXEC
MOVE_MOUNT_F_EMPTY_PATH = 4
MOUNT_ATTR_IDMAP = 0x00100000
AT_FDCWD, AT_EMPTY_PATH = -100, 0x1000
CLONE_NEWUSER = 0x10000000

MS_NOATIME = 1024
# who owns everything in a workspace's file system, whichever pool user its cell has
DISK_ID = 1000

_libc = ctypes.CDLL(None, use_errno=True)


def attach(image: int) -> int:
    """Return a descriptor of the loop device behind which a file lies, attached if need be.

    A file is never behind two: they would be two views of one file system, and the end of it. The device
    lets go of the file when its last user, a mount included, is gone.

    Raises OSError.
    """
    if (found := _attached(image)) is not None:
        return found
    info = INFO.pack(0, 0, 0, 0, 0, 0, 0, 0, LO_FLAGS_AUTOCLEAR, b"", b"", b"", 0, 0)
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        for _ in range(TRIES):
            number = fcntl.ioctl(control, LOOP_CTL_GET_FREE)
            device = os.open(f"/dev/loop{number}", os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.ioctl(device, LOOP_CONFIGURE, CONFIG.pack(image, 0, info, b""))
            except OSError as error:
                os.close(device)
                if error.errno != errno.EBUSY:
                    raise
            else:
                return device
    finally:
        os.close(control)
    raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))


def _attached(image: int) -> int | None:
    wanted = os.fstat(image)
    for entry in Path("/sys/block").glob("loop*/loop"):
        with contextlib.suppress(OSError):
            # while it is open it stays attached
            device = os.open(f"/dev/{entry.parent.name}", os.O_RDWR | os.O_CLOEXEC)
            try:
                info = INFO.unpack(fcntl.ioctl(device, LOOP_GET_STATUS64, bytes(INFO.size)))
                if (info[0], info[1]) == (wanted.st_dev, wanted.st_ino):
                    return device
            except OSError:
                pass
            os.close(device)
    return None


def user_namespace(uid: int, gid: int) -> int:
    """Return a user namespace that maps what is on disk to a user: all that a mapped mount needs of one.

    Raises:
        SandboxUnavailable: there is none to be had.
    """
    begun, ready = os.pipe()
    child = os.fork()
    if child == 0:
        # nothing but system calls: the parent's loop and handlers are here too
        try:
            os.write(ready, b"y" if _libc.unshare(CLONE_NEWUSER) == 0 else b"n")
            signal.pause()
        finally:
            os._exit(0)
    try:
        os.close(ready)
        if os.read(begun, 1) != b"y":
            raise SandboxUnavailable("No user namespace can be made for a workspace.", reason="no_workspaces")
        for name, number in (("uid_map", uid), ("gid_map", gid)):
            Path(f"/proc/{child}/{name}").write_text(f"{DISK_ID} {number} 1\n")
        return os.open(f"/proc/{child}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(begun)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


@dataclass(frozen=True, slots=True)
class Volume:
    """A file system behind a loop device, to be mounted for one user."""

    device: int
    namespace: int

    def mount(self, target: Path) -> None:
        """Mount it in this process's own mount namespace. Raises OSError."""
        device = Path(f"/proc/self/fd/{self.device}").readlink()
        mount(str(device), target, "ext4", MS_NOSUID | MS_NODEV | MS_NOATIME, "discard,noinit_itable")
        tree = _checked(
            _libc.syscall(SYS_OPEN_TREE, AT_FDCWD, os.fsencode(target), OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC)
        )
        attributes = struct.pack("=4Q", MOUNT_ATTR_IDMAP, 0, 0, self.namespace)
        _checked(_libc.syscall(SYS_MOUNT_SETATTR, tree, b"", AT_EMPTY_PATH, attributes, len(attributes)))
        _checked(_libc.umount2(os.fsencode(target), MNT_DETACH))
        _checked(
            _libc.syscall(SYS_MOVE_MOUNT, tree, b"", AT_FDCWD, os.fsencode(target), MOVE_MOUNT_F_EMPTY_PATH)
        )
        os.close(tree)

    def close(self) -> None:
        """Let go of device and namespace; what is mounted stays."""
        os.close(self.device)
        os.close(self.namespace)


def _checked(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
