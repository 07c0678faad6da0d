"""Opening beneath a directory: what a path may be, the calls that keep to it, what their errors mean."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
import struct
from collections.abc import Iterator
from typing import Literal

from gateway.errors import BadRequest, Conflict, GatewayError, InsufficientStorage, NotFound, PayloadTooLarge
from gateway.models import FileFacts

MAX_PATH, MAX_NAME, MAX_DEPTH = 2048, 255, 64

# linux/openat2.h; the call's number is the same on every architecture
SYS_OPENAT2 = 437
NO_XDEV, NO_MAGICLINKS, NO_SYMLINKS, BENEATH = 0x01, 0x02, 0x04, 0x08
SAFELY = NO_XDEV | NO_MAGICLINKS | NO_SYMLINKS | BENEATH
RENAME_NOREPLACE = 1
# O_NONBLOCK: neither a FIFO nor a lease on the file keeps the opener waiting
QUIETLY = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | QUIETLY
PLACE = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
OPEN_TRIES = 8

_libc = ctypes.CDLL(None, use_errno=True)

_WORDS: dict[int, tuple[type[GatewayError], str, str]] = {
    errno.ENOENT: (NotFound, "does not exist", "no_file"),
    errno.ENOTDIR: (NotFound, "does not exist: a part of it is no directory", "no_file"),
    errno.ELOOP: (BadRequest, "leads through a link", "link"),
    errno.EXDEV: (BadRequest, "leads out of the home", "outside"),
    errno.ENAMETOOLONG: (BadRequest, "is too long", "path"),
    errno.EINVAL: (BadRequest, "cannot be used like this", "path"),
    errno.EEXIST: (Conflict, "is there already", "exists"),
    errno.ENOTEMPTY: (Conflict, "is not empty", "not_empty"),
    errno.EISDIR: (Conflict, "is a directory", "is_directory"),
    errno.ENXIO: (Conflict, "is not a regular file", "not_a_file"),
    errno.EAGAIN: (Conflict, "is held by a process of the kernel's", "in_use"),
    errno.EBUSY: (Conflict, "is in use", "in_use"),
    errno.EACCES: (Conflict, "may not be used by the kernel's own user", "permission"),
    errno.EPERM: (Conflict, "may not be used by the kernel's own user", "permission"),
    errno.ENOSPC: (InsufficientStorage, "does not fit: the home is full", "full"),
    errno.EDQUOT: (InsufficientStorage, "does not fit: the home is full", "full"),
    errno.EFBIG: (PayloadTooLarge, "would be larger than a file may be", "file_size"),
}


def refusal(error: OSError, path: str) -> GatewayError:
    """Return what an operating system's error means to who asked for a path."""
    kind, words, reason = _WORDS.get(
        error.errno or 0, (Conflict, f"cannot be used: {error.strerror}", "failed")
    )
    return kind(f"{shown(path)} {words}.", reason=reason)


def shown(path: str) -> str:
    """Return a path for messages: printable and short."""
    return ascii(path[:100]) if not path.isprintable() or len(path) > 100 else f"'{path}'"


def parts_of(path: str) -> list[str]:
    """Split a path into names. Raises BadRequest for what no path beneath a home looks like."""
    if path.startswith("/"):
        raise BadRequest(f"{shown(path)} is absolute; paths are relative to the home.", reason="path")
    names = [name for name in path.split("/") if name not in {"", "."}]
    encoded = [os.fsencode(name) for name in names]
    if ".." in names or any("\0" in name for name in names):
        raise BadRequest(f"{shown(path)} has a '..' or a NUL in it.", reason="path")
    if len(names) > MAX_DEPTH or sum(map(len, encoded)) + len(names) > MAX_PATH:
        raise BadRequest(f"{shown(path)} is too deep or too long.", reason="path")
    if any(len(name) > MAX_NAME for name in encoded):
        raise BadRequest(f"{shown(path)} has a name longer than {MAX_NAME} bytes.", reason="path")
    return names


def openat2(directory: int, path: str, flags: int, mode: int = 0) -> int:
    """Open a path that stays beneath a directory and crosses no link and no mount. Raises OSError."""
    how = struct.pack("=QQQ", flags, mode, SAFELY)
    for _ in range(OPEN_TRIES):
        found = _libc.syscall(SYS_OPENAT2, directory, os.fsencode(path), how, len(how))
        if found >= 0:
            return int(found)
        if ctypes.get_errno() != errno.EAGAIN:
            # EAGAIN is also a rename somewhere on the machine while the path was walked
            break
    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def renameat2(source: int, old: str, target: int, new: str, flags: int) -> None:
    """Rename between two directories. Raises OSError."""
    if _libc.renameat2(source, os.fsencode(old), target, os.fsencode(new), flags):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


@contextlib.contextmanager
def opened(descriptor: int) -> Iterator[int]:
    """Close a descriptor at the end."""
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def facts_of(path: str, found: os.stat_result) -> FileFacts:
    """Return the facts that a stat tells."""
    kinds: dict[int, Literal["file", "directory", "link"]] = {
        stat.S_IFREG: "file",
        stat.S_IFDIR: "directory",
        stat.S_IFLNK: "link",
    }
    return FileFacts(
        path=path,
        type=kinds.get(stat.S_IFMT(found.st_mode), "other"),
        size=found.st_size,
        mode=stat.S_IMODE(found.st_mode),
        modified_ns=found.st_mtime_ns,
        # not the mtime: a process sets that as it likes
        version=f"{found.st_ino:x}-{found.st_size:x}-{found.st_ctime_ns:x}",
    )
