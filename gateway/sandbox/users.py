"""Pool users: an own uid for every live cell, taken under a host-wide lock."""

from __future__ import annotations

import fcntl
import os
import pwd
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from gateway.errors import SandboxUnavailable

LOCKS = Path("/run/cellblock-uids")


@dataclass(frozen=True, slots=True)
class CellUser:
    """The system user that a cell runs as."""

    name: str
    uid: int
    gid: int
    home: Path


def current_user() -> CellUser:
    """Return the user that this process runs as.

    Raises:
        SandboxUnavailable: the user has no passwd entry, which firejail needs.
    """
    try:
        entry = pwd.getpwuid(os.getuid())
    except KeyError:
        raise SandboxUnavailable(
            f"The uid {os.getuid()} has no passwd entry, and firejail needs one."
        ) from None
    return CellUser(entry.pw_name, entry.pw_uid, entry.pw_gid, Path(entry.pw_dir))


class UserPool:
    """Takes users `PREFIX0001…` with uids from `first_uid` on, and makes those that do not exist yet.

    Several wardens of one machine share the pool: a lock file per uid is held while a cell uses it, and the
    system lets go of it should the warden die.
    """

    def __init__(self, prefix: str, first_uid: int, size: int, locks: Path = LOCKS) -> None:
        self._prefix = prefix
        self._first_uid = first_uid
        self._size = size
        self._locks = locks
        self._taken: dict[int, int] = {}
        self._proved_free: set[int] = set()

    def take(self) -> CellUser:
        """Return a user that no cell of this machine uses.

        Raises:
            SandboxUnavailable: all are taken, or a user cannot be made.
        """
        self._locks.mkdir(mode=0o700, exist_ok=True)
        for index in range(self._size):
            uid = self._first_uid + index
            if uid in self._taken:
                continue
            lock = self._lock(uid)
            if lock is None:
                continue
            try:
                user = self._user(index)
                if user is not None and (uid in self._proved_free or not processes_of(uid)):
                    self._taken[uid] = lock
                    return user
            except BaseException:
                os.close(lock)
                raise
            os.close(lock)
        raise SandboxUnavailable(f"All {self._size} pool users are taken.", reason="pool_exhausted")

    def release(self, user: CellUser) -> None:
        """Give a user back, once nothing of its cell is left."""
        self._proved_free.add(user.uid)
        os.close(self._taken.pop(user.uid))

    def _lock(self, uid: int) -> int | None:
        lock = os.open(self._locks / str(uid), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._proved_free.discard(uid)
            os.close(lock)
            return None
        return lock

    def _user(self, index: int) -> CellUser | None:
        """Return the pool's user of that index, made if need be; None where the uid is somebody else's."""
        name, uid = f"{self._prefix}{index + 1:04d}", self._first_uid + index
        home = Path("/home") / name
        try:
            entry = pwd.getpwuid(uid)
        except KeyError:
            self._make(name, uid, home)
            entry = pwd.getpwuid(uid)
        if entry.pw_name != name:
            return None
        # firejail asks for a real home of the user's own; nothing is ever put into it
        home.mkdir(mode=0o500, exist_ok=True)
        os.chown(home, uid, entry.pw_gid, follow_symlinks=False)
        return CellUser(name, uid, entry.pw_gid, home)

    @staticmethod
    def _make(name: str, uid: int, home: Path) -> None:
        command = ["useradd", "-M", "-U", "-u", str(uid), "-d", str(home), "-s", "/bin/bash", name]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SandboxUnavailable(f"The pool user {name} cannot be made: {done.stderr.strip()}")


def processes_of(uid: int) -> list[int]:
    """List the processes whose real, effective or saved uid is the one given."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            status = (entry / "status").read_text()
        except OSError:
            continue
        uids = re.search(r"^Uid:\s+(\d+)\s+(\d+)\s+(\d+)", status, re.MULTILINE)
        if uids and str(uid) in uids.groups():
            found.append(int(entry.name))
    return found
