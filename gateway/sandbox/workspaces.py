"""Workspaces: homes that persist between kernels, each used by one cell, or by several that share it."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import subprocess
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from gateway.errors import Conflict, InsufficientStorage, NotFound, SandboxUnavailable
from gateway.models import WorkspaceFacts
from gateway.sandbox.loop import DISK_ID, Volume, attach, user_namespace
from gateway.sandbox.users import CellUser
from gateway.sandbox.wire import WorkspaceOrder

SUFFIX = ".img"


class Workspaces:
    """The workspaces below a directory, by a hash of their owner and by name.

    A root warden's are images of file systems, so that each is bounded in bytes and inodes, and mounted for
    whichever user its cell has; an ordinary user's are plain directories, which nothing bounds.
    """

    def __init__(self, root: Path, *, images: bool) -> None:
        self._root = root
        self._images = images
        self._alone: set[Path] = set()
        self._shared: Counter[Path] = Counter()

    def take(self, order: WorkspaceOrder) -> Lease:
        """Reserve a workspace for one cell, alone or shared as the order says; it is made if need be.

        Raises:
            Conflict: another cell has it, and not both of them share.
            InsufficientStorage: its owner may have no more, or the disk has no room for it.
            SandboxUnavailable: it cannot be made.
        """
        path = self._path(order.owner, order.name)
        if path in self._alone or (path in self._shared and not order.shared):
            raise Conflict(f"The workspace '{order.name}' is used by another kernel.", reason="in_use")
        if not path.exists():
            self._check_budget(order)
            self._make(path, order)
        elif self._images:
            found = path.stat()
            self._check_disk(found.st_size - found.st_blocks * 512)
        if order.shared:
            self._shared[path] += 1
        else:
            self._alone.add(path)
        return Lease(self, path, images=self._images, shared=order.shared)

    def release(self, path: Path, *, shared: bool) -> None:
        """Take a workspace back from one cell."""
        if not shared:
            self._alone.discard(path)
            return
        self._shared[path] -= 1
        if self._shared[path] <= 0:
            del self._shared[path]

    def list(self, owner: str) -> list[WorkspaceFacts]:
        """Return an owner's workspaces by name."""
        with contextlib.suppress(FileNotFoundError):
            found = sorted((self._root / owner).iterdir())
            return [self._facts(path) for path in found if not path.name.startswith(".")]
        return []

    def delete(self, owner: str, name: str) -> None:
        """Delete a workspace. Raises NotFound, and Conflict while a cell has it."""
        path = self._path(owner, name)
        if self._in_use(path):
            raise Conflict(f"The workspace '{name}' is used by a kernel.", reason="in_use")
        passing = path.with_name(f".{secrets.token_hex(8)}")
        try:
            path.rename(passing)
        except FileNotFoundError:
            raise NotFound(f"There is no workspace '{name}'.") from None
        if self._images:
            passing.unlink()
        else:
            shutil.rmtree(passing, ignore_errors=True)

    def _in_use(self, path: Path) -> bool:
        return path in self._alone or path in self._shared

    def _path(self, owner: str, name: str) -> Path:
        return self._root / owner / (name + SUFFIX if self._images else name)

    def _facts(self, path: Path) -> WorkspaceFacts:
        found = path.stat()
        return WorkspaceFacts(
            name=path.name.removesuffix(SUFFIX) if self._images else path.name,
            size_bytes=found.st_size if self._images else None,
            used_bytes=found.st_blocks * 512 if self._images else None,
            in_use=self._in_use(path),
        )

    def _check_budget(self, order: WorkspaceOrder) -> None:
        if order.budget_bytes is None:
            return
        # plain directories count with what they would have been given
        kept = sum(facts.size_bytes or order.size_bytes for facts in self.list(order.owner))
        if kept + order.size_bytes > order.budget_bytes:
            raise InsufficientStorage(
                f"Your workspaces have {kept} bytes of the {order.budget_bytes} that they may have, "
                f"and a new one takes {order.size_bytes}: delete one.",
                reason="storage_bytes",
            )

    def _check_disk(self, more: int) -> None:
        found = os.statvfs(self._root)
        if found.f_bavail * found.f_frsize < more:
            raise InsufficientStorage("The disk has no room for what the workspace may hold.", reason="disk")

    def _make(self, path: Path, order: WorkspaceOrder) -> None:
        self._root.mkdir(mode=0o700, exist_ok=True)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        if not self._images:
            path.mkdir(mode=0o700)
            return
        self._check_disk(order.size_bytes)
        passing = path.with_name(f".{secrets.token_hex(8)}")
        try:
            with passing.open("xb") as image:
                image.truncate(order.size_bytes)
            passing.chmod(0o600)
            self._format(passing, order.inodes)
            passing.rename(path)
        except BaseException:
            passing.unlink(missing_ok=True)
            raise

    @staticmethod
    def _format(image: Path, inodes: int) -> None:
        """Make a file system that belongs to the one user whom mounts map; it takes some 40 ms."""
        extended = f"root_owner={DISK_ID}:{DISK_ID},lazy_itable_init=1,nodiscard"
        make = ["mkfs.ext4", "-q", "-F", "-b", "4096", "-m", "0", "-e", "remount-ro"]
        commands = (
            [*make, "-N", str(inodes), "-E", extended, str(image)],
            # it is root's, and would be in the way of who lists or empties the home
            ["debugfs", "-w", "-R", "rmdir lost+found", str(image)],
        )
        environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
        for command in commands:
            try:
                done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
            except OSError as error:
                raise SandboxUnavailable(
                    f"Workspaces need {command[0]} (e2fsprogs): {error.strerror}.", reason="no_workspaces"
                ) from error
            if done.returncode:
                raise SandboxUnavailable(
                    f"The workspace cannot be made: {done.stderr.strip()[-200:]}", reason="no_workspaces"
                )


@dataclass(slots=True)
class Lease:
    """A workspace that one cell has, alone or with others."""

    owner: Workspaces
    path: Path
    images: bool
    shared: bool
    held: bool = True

    def volume(self, user: CellUser) -> Volume:
        """Return what the cell's launcher mounts; to be closed when it has. Raises SandboxUnavailable."""
        image = os.open(self.path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            device = attach(image)
        except OSError as error:
            raise SandboxUnavailable(
                f"Workspaces need loop devices: {error.strerror}.", reason="no_workspaces"
            ) from error
        finally:
            os.close(image)
        try:
            return Volume(device, user_namespace(user.uid, user.gid))
        except BaseException:
            os.close(device)
            raise

    def release(self) -> None:
        """Give the workspace back. Releasing twice is harmless."""
        if self.held:
            self.held = False
            self.owner.release(self.path, shared=self.shared)
