"""The processes of a tree, by /proc: for cells without a cgroup of their own."""

from __future__ import annotations

import os
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
# fields of /proc/PID/stat after the name (proc(5)): parent, user and system ticks, resident pages
_PPID, _UTIME, _STIME, _RSS = 1, 11, 12, 21


def fields(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat after the name; none where the process is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return []


def descendants(root: int) -> list[int]:
    """List a process and all that it ever started and that still lives, parents first."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (stat := fields(int(entry.name))):
            children.setdefault(int(stat[_PPID]), []).append(int(entry.name))
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return found


def total(pids: list[int]) -> tuple[int, float, int]:
    """Add up resident bytes (shared pages as often as they are shared), CPU seconds, and processes."""
    memory = ticks = count = 0
    for pid in pids:
        if stat := fields(pid):
            memory += int(stat[_RSS]) * _PAGE_BYTES
            ticks += int(stat[_UTIME]) + int(stat[_STIME])
            count += 1
    return memory, ticks / _TICKS_PER_S, count
