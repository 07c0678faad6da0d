"""What the tests of lives and deaths look at from outside: a gateway's cells, and what is left of it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from pathlib import Path
from typing import TYPE_CHECKING

from gateway import settings
from gateway.sandbox.daemon import tree_name

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.gateway import Client, Gateway

RUN_DIRS = ("run/cellblock", "run/user/*/cellblock", "tmp/cellblock-*")


def tree(gateway: Gateway) -> str:
    """Return the name of a gateway's run directory and cgroups on this machine."""
    return tree_name(settings.load(state_dir=gateway.state_dir))


def cells(gateway: Gateway) -> dict[int, str]:
    """Return the processes of a gateway's cells, firejail's own included, with their command lines."""
    mark = f"/{tree(gateway)}/"
    found = {}
    for entry in Path("/proc").iterdir():
        # a zombie has no command line
        with contextlib.suppress(OSError, ValueError):
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if mark in line:
                found[int(entry.name)] = line
    return found


def kernels(gateway: Gateway) -> list[int]:
    """Return the kernels' own pids among a gateway's cells."""
    return [pid for pid, line in cells(gateway).items() if "boot.py" in line.split(" --", 1)[0]]


def run_dirs(gateway: Gateway) -> list[Path]:
    """Return the directories of a gateway's cells: one, while its warden lives."""
    return [path for pattern in RUN_DIRS for path in Path("/").glob(f"{pattern}/{tree(gateway)}")]


def traces(gateway: Gateway) -> list[str]:
    """List what a gateway has on this machine beside its state directory and its own process."""
    name = tree(gateway)
    found = [f"cell {pid}" for pid in cells(gateway)]
    found += [f"warden {pid}" for pid in gateway.warden_pids()]
    found += [f"keeper {pid}" for pid in gateway.keeper_pids()]
    found += [str(path) for path in Path("/sys/fs/cgroup").glob(f"*/cellblock/{name}")]
    found += [str(path) for path in Path("/sys/fs/cgroup").glob(f"cellblock/{name}")]
    found += [str(path) for path in run_dirs(gateway)]
    mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
    found += [line for line in mounts if name in line]
    homes = gateway.state_dir / "warden" / "homes"
    return found + [str(path) for path in (homes.iterdir() if homes.is_dir() else ())]


def lock_holders() -> set[int]:
    """Return the processes that hold a pool uid's lock (/proc/locks names locks by inode)."""
    inodes = {str(path.stat().st_ino) for path in Path("/run/cellblock-uids").glob("*")}
    rows = [line.split() for line in Path("/proc/locks").read_text(encoding="utf-8").splitlines()]
    return {int(row[4]) for row in rows if row[1] == "FLOCK" and row[5].rsplit(":", 1)[1] in inodes}


async def eventually(condition: Callable[[], object], timeout: float = 10.0) -> bool:
    """Wait until a condition holds; tell whether it came to that."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(0.02)
    return True


async def until_state(client: Client, kernel_id: str, state: str, timeout: float = 20.0) -> float:
    """Wait until a kernel is in a state; return the seconds that it took."""
    begun = time.monotonic()
    while (model := await client.kernel(kernel_id))["execution_state"] != state:
        assert time.monotonic() - begun < timeout, model
        await asyncio.sleep(0.05)
    return time.monotonic() - begun
