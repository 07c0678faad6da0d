"""What processes use, read from /proc: CPU, memory, descriptors, threads; and who descends from whom."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

PROC = Path("/proc")
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Use:
    """What some processes use together."""

    cpu_s: float
    pss_kb: int
    rss_kb: int
    descriptors: int
    threads: int


def use_of(pids: Iterable[int]) -> Use:
    """Add up what some processes use; those that are gone use nothing."""
    cpu, pss, rss, descriptors, threads = 0.0, 0, 0, 0, 0
    for pid in pids:
        with contextlib.suppress(OSError):
            memory = _kilobytes(PROC / str(pid) / "smaps_rollup")
            cpu += cpu_s(pid)
            pss += memory.get("Pss", 0)
            rss += memory.get("Rss", 0)
            descriptors += _entries(PROC / str(pid) / "fd")
            threads += _entries(PROC / str(pid) / "task")
    return Use(cpu, pss, rss, descriptors, threads)


def cpu_s(pid: int) -> float:
    """Return the CPU seconds that a process has used. Raises OSError when it is gone."""
    fields = _stat(pid)
    return (int(fields[11]) + int(fields[12])) / TICKS


def descendants(ancestors: Iterable[int]) -> list[int]:
    """List all processes below some, each once."""
    children: dict[int, list[int]] = {}
    for entry in PROC.glob("[1-9]*"):
        with contextlib.suppress(OSError):
            children.setdefault(int(_stat(int(entry.name))[1]), []).append(int(entry.name))
    found: set[int] = set()
    waiting = list(ancestors)
    while waiting:
        below = set(children.get(waiting.pop(), ())) - found
        found |= below
        waiting += below
    return sorted(found)


def with_argument(mark: str) -> list[int]:
    """List the processes that have a text in their command line."""
    found = []
    for entry in PROC.glob("[1-9]*"):
        with contextlib.suppress(OSError):
            if mark.encode() in (entry / "cmdline").read_bytes() and int(entry.name) != os.getpid():
                found.append(int(entry.name))
    return found


class Family:
    """Processes that we started and all below them, remembered so that none of them is left over."""

    def __init__(self, pids: Iterable[int]) -> None:
        roots = list(pids)
        # a pid may be another's by the time that we end it: its start time tells
        self._members = {pid: _born(pid) for pid in [*roots, *descendants(roots)]}

    def end(self, patience_s: float) -> None:
        """Give them some time to leave, and kill what is still there then."""
        deadline = time.monotonic() + patience_s
        while self._alive() and time.monotonic() < deadline:
            time.sleep(0.02)
        for pid in self._alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _alive(self) -> list[int]:
        return [pid for pid, born in self._members.items() if born is not None and _born(pid) == born]


def _born(pid: int) -> str | None:
    try:
        fields = _stat(pid)
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]


def _entries(path: Path) -> int:
    return sum(1 for _ in path.iterdir())


def _stat(pid: int) -> list[str]:
    return (PROC / str(pid) / "stat").read_text().rsplit(")", 1)[1].split()


def _kilobytes(path: Path) -> dict[str, int]:
    found = {}
    for line in path.read_text().splitlines()[1:]:
        name, _, rest = line.partition(":")
        found[name] = int(rest.split()[0])
    return found
