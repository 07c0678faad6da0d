"""Making a pooled cell somebody's: a name for its kernel, and limits that may be lower than the cell's."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext

from gateway.errors import Conflict, SandboxUnavailable
from gateway.models import Limits
from gateway.sandbox import tmpfs
from gateway.sandbox.bootorder import rlimits
from gateway.sandbox.cell import Cell
from gateway.sandbox.profile import SandboxProfile
from gateway.sandbox.users import CellUser
from gateway.sandbox.wire import Claim

# the limits that bound the cell itself; the others are the gateway's to enforce
BOUNDS = (
    "memory_bytes",
    "pids",
    "cpus",
    "home_bytes",
    "tmp_bytes",
    "shm_bytes",
    "home_inodes",
    "open_files",
    "file_bytes",
)
# what a group's memory may be lowered to: less than twice of what is in use leaves its owner nothing
ROOM = 2


def claim(cell: Cell, order: Claim, profile: SandboxProfile, *, shm: str) -> None:
    """Give a pooled cell's kernel its id, its age and its limits. Blocks for less than a millisecond.

    Raises:
        Conflict: it is not one of a pool's any more; or its limits cannot be lowered so far, or would rise,
            which leaves it as it was.
        SandboxUnavailable: a limit cannot be set; the cell is to be ended.
    """
    if not cell.pooled:
        raise Conflict(f"The cell {cell.id} is somebody's.", reason="claimed")
    was, wanted = cell.limits, order.limits
    if any(getattr(wanted, name) > getattr(was, name) for name in BOUNDS):
        raise Conflict("A claim can only lower the limits of a cell.", reason="limits")
    if cell.cgroup and wanted.memory_bytes != was.memory_bytes:
        used = cell.cgroup.usage().memory_bytes
        if used * ROOM > wanted.memory_bytes:
            raise Conflict(f"The cell has {used} bytes in use already.", reason="limits")
    # whatever comes of it, nobody else gets it
    cell.pooled = False
    _lower(cell, profile, wanted, shm)
    cell.limits = wanted
    cell.kernel_id = order.kernel_id
    cell.born = time.monotonic() - order.age_s


def _lower(cell: Cell, profile: SandboxProfile, wanted: Limits, shm: str) -> None:
    was = cell.limits
    if cell.cgroup and _differ(was, wanted, "memory_bytes", "pids", "cpus"):
        cell.cgroup.apply(wanted)
    if cell.pool:
        places = {"home_bytes": str(cell.user.home), "tmp_bytes": "/tmp", "shm_bytes": shm}  # noqa: S108
        for name, place in places.items():
            if _differ(was, wanted, name, "home_inodes"):
                size = getattr(wanted, name)
                tmpfs.bound(cell.kernel_pid, place, size_bytes=size, inodes=wanted.home_inodes)
    bounded = cell.cgroup is not None
    before = rlimits(was, profile, bounded_memory=bounded)
    after = rlimits(wanted, profile, bounded_memory=bounded)
    lowered = {name: value for name, value in after.items() if value != before[name]}
    if lowered:
        with _real_ids(cell.user) if cell.pool else nullcontext():
            for pid in cell.tree():
                _limit(pid, lowered)


def _differ(was: Limits, wanted: Limits, *names: str) -> bool:
    return any(getattr(was, name) != getattr(wanted, name) for name in names)


@contextmanager
def _real_ids(user: CellUser) -> Iterator[None]:
    """Have the cell's real uid and gid for a moment, whose processes may be limited then.

    Root alone may not where it lacks CAP_SYS_RESOURCE, in a container say: see prlimit(2).
    """
    uid, gid = os.getuid(), os.getgid()
    os.setresgid(user.gid, -1, -1)
    os.setresuid(user.uid, -1, -1)
    try:
        yield
    finally:
        os.setresuid(uid, -1, -1)
        os.setresgid(gid, -1, -1)


def _limit(pid: int, lowered: Mapping[str, int]) -> None:
    try:
        for name, value in lowered.items():
            resource.prlimit(pid, getattr(resource, name), (value, value))
    except ProcessLookupError:
        return
    except (OSError, ValueError) as error:
        raise SandboxUnavailable(
            f"The limits of a cell cannot be lowered: {error}.", reason="limits_refused"
        ) from error
