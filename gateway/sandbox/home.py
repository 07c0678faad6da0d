"""Safe paths into a cell's home: the kernel resolves them beneath it, with the cell user's own rights."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import itertools
import os
import secrets
import stat
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from gateway.errors import (
    BadRequest,
    PreconditionFailed,
    SandboxUnavailable,
)
from gateway.models import FileFacts
from gateway.sandbox.beneath import (
    DIRECTORY,
    PLACE,
    QUIETLY,
    RENAME_NOREPLACE,
    facts_of,
    openat2,
    opened,
    parts_of,
    renameat2,
    shown,
)
from gateway.sandbox.users import CellUser

FILE_MODE, DIRECTORY_MODE = 0o644, 0o755
# entries that are looked at in one go
STEP = 256

_libc = ctypes.CDLL(None, use_errno=True)


class Home:
    """The home of one live cell, by a descriptor of its root. For one thread: its rights change at times.

    Every method but the generators is short; those do a little at each step, with the user's rights taken
    for that step alone. All raise OSError, and GatewayError for what no OSError says.
    """

    def __init__(self, root: int, user: CellUser | None) -> None:
        self._root = root
        self._user = user

    @classmethod
    def of_cell(cls, pid: int, user: CellUser) -> Home:
        """Open the home that a process of a root warden's cell sees, before it runs a user's code.

        Raises SandboxUnavailable when that is no file system of the user's alone.
        """
        with opened(os.open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)) as top:
            root = os.open(str(user.home).lstrip("/"), PLACE | os.O_DIRECTORY, dir_fd=top)
            found = os.fstat(root)
            if found.st_uid != user.uid or found.st_dev == os.fstat(top).st_dev:
                os.close(root)
                raise SandboxUnavailable("The cell's home is not its own.", reason="not_confined")
        return cls(root, user)

    @classmethod
    def of_directory(cls, path: Path) -> Home:
        """Open a home that is a directory of this very user's."""
        return cls(os.open(path, PLACE | os.O_DIRECTORY), None)

    def close(self) -> None:
        """Let go of the home. Closing twice is harmless."""
        root, self._root = self._root, -1
        if root >= 0:
            os.close(root)

    @contextlib.contextmanager
    def rights(self) -> Iterator[None]:
        """Touch files as the cell's user: its permissions and quotas, and none of root's."""
        if self._user is None:
            yield
            return
        unchanged = ctypes.c_uint32(-1)
        try:
            _libc.setfsgid(self._user.gid)
            _libc.setfsuid(self._user.uid)
            if _libc.setfsuid(unchanged) != self._user.uid or _libc.setfsgid(unchanged) != self._user.gid:
                raise SandboxUnavailable("The warden cannot act as the cell's user.")
            yield
        finally:
            _libc.setfsuid(os.geteuid())
            _libc.setfsgid(os.getegid())

    def stat(self, path: str) -> FileFacts:
        """Return what is at a path."""
        with self.rights(), opened(self._open(path, PLACE)) as found:
            return facts_of("/".join(parts_of(path)), os.fstat(found))

    def open(self, path: str, mode: Literal["read", "append"]) -> int:
        """Open a regular file and return its descriptor; to append, it is made if need be."""
        flags = os.O_RDONLY if mode == "read" else os.O_WRONLY | os.O_APPEND | os.O_CREAT
        with self.rights():
            descriptor = self._open(path, flags | QUIETLY, FILE_MODE if mode == "append" else 0)
        kind = stat.S_IFMT(os.fstat(descriptor).st_mode)
        if kind != stat.S_IFREG:
            os.close(descriptor)
            raise OSError(errno.EISDIR if kind == stat.S_IFDIR else errno.ENXIO, "")
        return descriptor

    def spool(self, *, executable: bool) -> int:
        """Open a file without a name and return its descriptor."""
        mode = DIRECTORY_MODE if executable else FILE_MODE
        with self.rights():
            return self._open("", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, mode)

    def place(self, file: int, path: str, *, replace: bool, version: str | None) -> FileFacts:
        """Give a spooled file its name, in one step. Raises PreconditionFailed."""
        found, root = os.fstat(file), os.fstat(self._root)
        if not stat.S_ISREG(found.st_mode) or found.st_nlink or found.st_dev != root.st_dev:
            raise BadRequest("That is no spooled file of this home.")
        with self.rights(), opened(self._parent(path, make=True)) as parent:
            name = parts_of(path)[-1]
            there = _lstat(name, parent)
            if version is not None and (there is None or facts_of("", there).version != version):
                raise PreconditionFailed(f"{shown(path)} is another version.", reason="if_match")
            if there is not None and not replace:
                raise PreconditionFailed(f"{shown(path)} is there already.", reason="if_none_match")
            if there is not None and stat.S_ISDIR(there.st_mode):
                raise OSError(errno.EISDIR, "")
            if there is not None and stat.S_ISREG(there.st_mode):
                os.fchmod(file, stat.S_IMODE(there.st_mode) & 0o777)
            link = f"/proc/self/fd/{file}"
            if not replace:
                os.link(link, name, dst_dir_fd=parent, follow_symlinks=True)
            else:
                passing = _passing_name()
                os.link(link, passing, dst_dir_fd=parent, follow_symlinks=True)
                try:
                    os.rename(passing, name, src_dir_fd=parent, dst_dir_fd=parent)
                except OSError:
                    os.unlink(passing, dir_fd=parent)
                    raise
            return facts_of("/".join(parts_of(path)), os.fstat(file))

    def mkdir(self, path: str) -> FileFacts:
        """Make a directory, and those above it."""
        with self.rights(), opened(self._parent(path, make=True)) as parent:
            os.mkdir(parts_of(path)[-1], DIRECTORY_MODE, dir_fd=parent)
        return self.stat(path)

    def move(self, path: str, to: str, *, replace: bool) -> FileFacts:
        """Rename within the home."""
        with (
            self.rights(),
            opened(self._parent(path)) as source,
            opened(self._parent(to, make=True)) as target,
        ):
            flags = 0 if replace else RENAME_NOREPLACE
            renameat2(source, parts_of(path)[-1], target, parts_of(to)[-1], flags)
        return self.stat(to)

    def remove(self, path: str) -> None:
        """Remove a file or an empty directory."""
        with self.rights(), opened(self._parent(path)) as parent:
            name = parts_of(path)[-1]
            if stat.S_ISDIR(os.lstat(name, dir_fd=parent).st_mode):
                os.rmdir(name, dir_fd=parent)
            else:
                os.unlink(name, dir_fd=parent)

    def empty(self, path: str, budget: int) -> bool:
        """Remove up to `budget` things from a directory, however deep it is; tell whether it is empty now.

        What is two levels down is moved one level up first: with that two descriptors do for any depth.
        """
        with self.rights(), opened(self._open(path, DIRECTORY)) as top:
            while budget > 0:
                with os.scandir(top) as listing:
                    entries = list(itertools.islice(listing, budget))
                if not entries:
                    return True
                for entry in entries:
                    budget -= self._remove_entry(top, entry, budget)
        return False

    def walk(self, path: str, depth: int, limit: int) -> Iterator[list[FileFacts | None]]:
        """Yield what is below a directory, some at a time, and at most `limit` of it.

        Yields a batch with None at its end where that was not all. A directory below the first that
        vanishes or cannot be read is passed over.
        """
        first = "/".join(parts_of(path))
        waiting = deque([(first, 1)])
        while waiting:
            directory, level = waiting.popleft()
            try:
                with self.rights():
                    descriptor = self._open(directory, DIRECTORY)
            except (OSError, BadRequest):
                if directory == first:
                    raise
                continue
            with opened(descriptor):
                with os.scandir(descriptor) as listing:
                    names = sorted(entry.name for entry in itertools.islice(listing, limit + 1))
                for start in range(0, min(len(names), limit), STEP):
                    found = self._facts(directory, descriptor, names[start : min(start + STEP, limit)])
                    below = [facts.path for facts in found if facts.type == "directory"]
                    waiting.extend((path, level + 1) for path in below if level < depth)
                    yield list(found)
            limit -= len(names)
            if limit < 0 or (limit == 0 and waiting):
                yield [None]
                return

    def _facts(self, directory: str, descriptor: int, names: list[str]) -> list[FileFacts]:
        """Return the facts of those names that are still there."""
        prefix = f"{directory}/" if directory else ""
        with self.rights():
            stats = [(name, _lstat(name, descriptor)) for name in names]
        return [facts_of(prefix + name, found) for name, found in stats if found]

    def _remove_entry(self, top: int, entry: os.DirEntry[str], budget: int) -> int:
        """Remove one entry, or as much of it as the budget allows; return what that took of it."""
        if not entry.is_dir(follow_symlinks=False):
            _vanish(entry.name, top)
            return 1
        spent = 1
        with opened(openat2(top, entry.name, DIRECTORY)) as child, os.scandir(child) as listing:
            for inner in itertools.islice(listing, budget):
                spent += 1
                if inner.is_dir(follow_symlinks=False):
                    renameat2(child, inner.name, top, _passing_name(), RENAME_NOREPLACE)
                else:
                    _vanish(inner.name, child)
        with contextlib.suppress(FileNotFoundError):
            try:
                os.rmdir(entry.name, dir_fd=top)
            except OSError as error:
                if error.errno != errno.ENOTEMPTY:
                    raise
        return spent

    def _open(self, path: str, flags: int, mode: int = 0) -> int:
        return openat2(self._root, "/".join(parts_of(path)) or ".", flags, mode)

    def _parent(self, path: str, *, make: bool = False) -> int:
        """Open the directory that a path's last name is in."""
        names = parts_of(path)
        if not names:
            raise BadRequest("This cannot be done to the home itself.", reason="path")
        if make:
            for count in range(1, len(names)):
                with (
                    opened(self._open("/".join(names[: count - 1]), PLACE | os.O_DIRECTORY)) as above,
                    contextlib.suppress(FileExistsError),
                ):
                    os.mkdir(names[count - 1], DIRECTORY_MODE, dir_fd=above)
        return self._open("/".join(names[:-1]), PLACE | os.O_DIRECTORY)


def _lstat(name: str, directory: int) -> os.stat_result | None:
    try:
        return os.lstat(name, dir_fd=directory)
    except FileNotFoundError:
        return None


def _vanish(name: str, directory: int) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=directory)


def _passing_name() -> str:
    return f".cellblock-{secrets.token_hex(8)}"
