"""What tests see of the machine from outside: processes, mounts, cgroups, descriptors."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tests.gateway import Gateway

PROC = Path("/proc")
CELL_MAKERS = ("firejail", "bwrap")


def processes() -> list[Path]:
    """List the /proc directories of all processes."""
    return [entry for entry in PROC.iterdir() if entry.name.isdigit()]


def read(path: Path) -> bytes:
    """Read a file of /proc; nothing where the process is gone."""
    try:
        return path.read_bytes()
    except OSError:
        return b""


def name_of(process: Path) -> str:
    """Return a process's own name."""
    return read(process / "comm").decode(errors="replace").strip()


def processes_named(mark: str) -> list[int]:
    """List the pids of processes with a mark among their arguments, those that make cells left out."""
    return [
        int(process.name)
        for process in processes()
        if mark.encode() in read(process / "cmdline") and name_of(process) not in CELL_MAKERS
    ]


def started_at(pid: int) -> int:
    """Return when a process started, in clock ticks since boot."""
    return int(read(PROC / str(pid) / "stat").rsplit(b")", 1)[1].split()[19])


def kernels_of(gateway: Gateway) -> list[int]:
    """List the pids of a gateway's kernels, oldest first; a root gateway's, by its cells' run directory."""
    return sorted(processes_named(f"/{gateway.tree}/boot.py"), key=started_at)


def entries(path: Path) -> int:
    """Count a directory's entries; none where it is not there."""
    return len(list(path.iterdir())) if path.is_dir() else 0


def grown(before: dict[str, int], after: dict[str, int]) -> dict[str, int]:
    """Tell what there is more of; the gateway's connections and pool threads come and go by a few."""
    few = {"descriptors": 10, "threads": 10}
    return {
        name: after[name] - before[name] for name in after if after[name] > before[name] + few.get(name, 0)
    }


def remains(gateway: Gateway) -> dict[str, int]:
    """Count what kernels could leave: on the machine, and in the gateway, its warden and its keeper."""
    assert gateway.process is not None
    pids = [gateway.process.pid, *gateway.warden_pids(), *gateway.keeper_pids()]
    return {
        "kernels": len(kernels_of(gateway)),
        "descriptors": entries(PROC / str(pids[0]) / "fd"),
        "warden descriptors": sum(entries(PROC / str(pid) / "fd") for pid in pids[1:]),
        "threads": sum(entries(PROC / str(pid) / "task") for pid in pids),
        "children": sum(len(children_of(pid)) for pid in pids[1:]),
        "mounts": Path("/proc/self/mountinfo").read_text().count(gateway.tree),
        "cgroups": len(cells_of(gateway)),
        "directories": len(directories_of(gateway)),
    }


def children_of(pid: int) -> list[int]:
    """List a process's children."""
    found = []
    for process in processes():
        stat = read(process / "stat")
        if stat and int(stat.rsplit(b")", 1)[1].split()[1]) == pid:
            found.append(int(process.name))
    return found


def cells_of(gateway: Gateway) -> Iterable[Path]:
    """List the cgroups of a gateway's cells."""
    return list(Path("/sys/fs/cgroup").glob(f"*/cellblock/{gateway.tree}/*/cgroup.procs"))


def directories_of(gateway: Gateway) -> Iterable[Path]:
    """List the run directories of a gateway's cells."""
    return list(Path("/run/cellblock", gateway.tree).glob("????????????"))


async def wait_for(condition: Callable[[], bool], timeout: float = 5.0) -> bool:
    """Wait until a condition holds; tell whether it came to that."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(0.05)
    return True
