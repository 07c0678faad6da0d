"""Claiming a pooled cell: once, and only with limits that it can be given."""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from types import SimpleNamespace
from typing import Any

import pytest

from gateway.errors import Conflict
from gateway.models import Limits
from gateway.sandbox.claiming import BOUNDS, claim
from gateway.sandbox.profile import SandboxProfile, load_profile, profile_dirs
from gateway.sandbox.wire import Claim

MINE = "00000000-0000-0000-0000-000000000001"


class Group:
    """A control group with so many bytes in use."""

    def __init__(self, used: int = 0) -> None:
        self.used = used
        self.applied: list[Limits] = []

    def usage(self) -> Any:
        """Say what is in use."""
        return SimpleNamespace(memory_bytes=self.used)

    def apply(self, limits: Limits) -> None:
        """Note the limits."""
        self.applied.append(limits)


@pytest.fixture(scope="module")
def profile() -> SandboxProfile:
    """The profile that is shipped as the default."""
    return load_profile("default", profile_dirs())


def pooled(**changes: Any) -> Any:
    """Return what claiming sees of a cell."""
    fields = {
        "id": "0123456789ab",
        "kernel_id": "nobody's",
        "pooled": True,
        "limits": Limits(),
        "cgroup": Group(),
        "pool": None,
        "tree": list,
        "born": 0.0,
    }
    return SimpleNamespace(**fields | changes)


def order(age_s: float = 0.0, **limits: Any) -> Claim:
    """Return a claim with these limits."""
    return Claim(cell="0123456789ab", kernel_id=MINE, limits=Limits(**limits), age_s=age_s)


def test_it_is_given_once(profile: SandboxProfile) -> None:
    """The first claim names it and sets its age; a second is refused, and changes nothing."""
    cell = pooled()
    claim(cell, order(age_s=100), profile, shm="/dev/shm")
    assert (cell.kernel_id, cell.pooled) == (MINE, False)
    assert 100 <= time.monotonic() - cell.born < 110
    with pytest.raises(Conflict) as refused:
        claim(cell, order(pids=30), profile, shm="/dev/shm")
    assert (refused.value.reason, cell.limits.pids) == ("claimed", Limits().pids)


@pytest.mark.parametrize("name", BOUNDS)
def test_no_limit_rises(profile: SandboxProfile, name: str) -> None:
    """A claim that would raise a limit is refused, and the cell is still to be had."""
    cell = pooled()
    more = {name: getattr(Limits(), name) * 2}
    with pytest.raises(Conflict):
        claim(cell, order(**more), profile, shm="/dev/shm")
    assert (cell.pooled, cell.cgroup.applied) == (True, [])


def test_memory_in_use_leaves_room(profile: SandboxProfile) -> None:
    """A limit below twice of what is in use is refused, and the cell is still to be had; above it is set."""
    cell = pooled(cgroup=Group(used=60 << 20))
    with pytest.raises(Conflict):
        claim(cell, order(memory_bytes=119 << 20, home_bytes=1 << 20), profile, shm="/dev/shm")
    assert cell.pooled
    claim(cell, order(memory_bytes=121 << 20, home_bytes=1 << 20), profile, shm="/dev/shm")
    assert [limits.memory_bytes for limits in cell.cgroup.applied] == [121 << 20]


def test_equal_limits_touch_nothing(profile: SandboxProfile) -> None:
    """Where the limits are the cell's own, neither group nor processes are written to."""
    cell = pooled(tree=lambda: pytest.fail("no process is to be looked at"))
    claim(cell, order(timeout_s=5), profile, shm="/dev/shm")
    assert cell.cgroup.applied == []
    assert cell.limits.timeout_s == 5


def test_running_processes_are_bounded(profile: SandboxProfile) -> None:
    """Resource limits are lowered, soft and hard, in what runs; one that is gone is passed over."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        cell = pooled(tree=lambda: [gone.pid, process.pid], limits=Limits(open_files=512))
        claim(cell, order(open_files=99, file_bytes=5 << 20), profile, shm="/dev/shm")
        assert resource.prlimit(process.pid, resource.RLIMIT_NOFILE) == (99, 99)
        assert resource.prlimit(process.pid, resource.RLIMIT_FSIZE) == (5 << 20, 5 << 20)
        process.kill()
