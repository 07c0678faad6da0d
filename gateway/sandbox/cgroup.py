"""Control groups: what a cell may use together, how much it does, and its end as a whole (v1 and v2)."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from gateway.errors import SandboxUnavailable
from gateway.models import Limits

PARENT = "cellblock"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_NEEDED = ("memory", "pids")
_V1_WANTED = ("cpu", "cpuacct")
_CPU_PERIOD_US = 100_000
_CPU_QUOTA_MIN_US = 1000
_TRIES = 200
_PAUSE_S = 0.005


@dataclass(frozen=True, slots=True)
class Usage:
    """What a cell uses: bytes now and at most so far (None where nobody says), CPU seconds, tasks."""

    memory_bytes: int
    memory_peak_bytes: int | None
    cpu_s: float
    pids: int


class Cgroup:
    """The groups of one cell, one directory for each hierarchy: by controller on v1, all in one on v2."""

    def __init__(self, cell_id: str, directories: Mapping[str, Path]) -> None:
        self.cell_id = cell_id
        self._dirs = directories
        self._v2 = directories["memory"] == directories.get("unified")

    def procs_files(self) -> list[Path]:
        """Return the files into which the launcher writes its pid before it execs."""
        return [directory / "cgroup.procs" for directory in self._distinct()]

    def apply(self, limits: Limits) -> None:
        """Set the limits, swap off. Raises SandboxUnavailable when the system refuses one."""
        try:
            self._memory(limits.memory_bytes)
            self._write("pids", "pids.max", limits.pids)
            quota = max(int(limits.cpus * _CPU_PERIOD_US), _CPU_QUOTA_MIN_US)
            if self._v2:
                if (self._dirs["cpu"] / "cpu.max").exists():
                    self._write("cpu", "cpu.max", f"{quota} {_CPU_PERIOD_US}")
            elif "cpu" in self._dirs:
                self._write("cpu", "cpu.cfs_period_us", _CPU_PERIOD_US)
                self._write("cpu", "cpu.cfs_quota_us", quota)
        except OSError as error:
            raise SandboxUnavailable(
                f"The limits of a cell cannot be set: {error}.", reason="cgroup_refused"
            ) from error

    def oom_kills(self) -> int:
        """Count the processes that were killed for memory."""
        return self._counters("memory", "memory.events" if self._v2 else "memory.oom_control").get(
            "oom_kill", 0
        )

    def cpu_throttled(self) -> float:
        """Return the seconds that the cell was held back for using its CPU up."""
        counters = self._counters("cpu", "cpu.stat")
        return (
            counters.get("throttled_usec", 0) / 1e6 if self._v2 else counters.get("throttled_time", 0) / 1e9
        )

    def usage(self) -> Usage:
        """Return what the cell uses. Zeros once the group is gone."""
        if self._v2:
            now, peak = "memory.current", "memory.peak"
            cpu_s = self._counters("cpu", "cpu.stat").get("usage_usec", 0) / 1e6
        else:
            now, peak = "memory.usage_in_bytes", "memory.max_usage_in_bytes"
            cpu_s = (self._number("cpuacct", "cpuacct.usage") or 0) / 1e9
        return Usage(
            memory_bytes=self._number("memory", now) or 0,
            memory_peak_bytes=self._number("memory", peak),
            cpu_s=cpu_s,
            pids=self._number("pids", "pids.current") or 0,
        )

    def freeze(self) -> None:
        """Stop every process where it is. Raises SandboxUnavailable when nothing here can."""
        self._freeze(frozen=True)

    def thaw(self) -> None:
        """Let the processes go on. Raises SandboxUnavailable when nothing here can."""
        self._freeze(frozen=False)

    def pids(self) -> list[int]:
        """Return every process of the cell, zombies not yet reaped included."""
        found: set[int] = set()
        for file in self.procs_files():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                found.update(map(int, file.read_text().split()))
        # 0 stands for a process that this pid namespace cannot name
        return sorted(found - {0})

    def kill(self) -> bool:
        """End every process, forks under way and frozen ones included; return whether the group is empty.

        Takes some milliseconds, and a second at most. Never kills the calling process.
        """
        own = os.getpid()
        for _ in range(_TRIES):
            pids = self.pids()
            if not pids:
                return True
            if own not in pids:
                self._try_write("unified", "cgroup.kill", 1)
            # no more forks, so that what is listed is all there is
            self._try_write("pids", "pids.max", 0)
            for pid in pids:
                if pid != own:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(SandboxUnavailable):
                self.thaw()
            if pids == [own]:
                return False
            time.sleep(_PAUSE_S)
        return not self.pids()

    def remove(self) -> bool:
        """Remove the groups; return whether they are gone. A group that still has a process stays."""
        directories = self._distinct()
        for _ in range(10):
            directories = [directory for directory in directories if not _removed(directory)]
            if not directories:
                return True
            time.sleep(_PAUSE_S)
        return False

    def _memory(self, limit: int) -> None:
        if self._v2:
            self._write("memory", "memory.max", limit)
            for file in ("memory.swap.max", "memory.oom.group"):
                # a child that takes all the memory dies alone, and the kernel can say so
                if (self._dirs["memory"] / file).exists():
                    self._write("memory", file, 0)
            return
        swap = self._dirs["memory"] / "memory.memsw.limit_in_bytes"
        files = ["memory.limit_in_bytes", *([swap.name] if swap.exists() else [])]
        # memory may never exceed memory with swap: upwards the second has to be first
        if (self._number("memory", files[0]) or 0) < limit:
            files.reverse()
        try:
            for file in files:
                self._write("memory", file, limit)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            for file in reversed(files):
                self._write("memory", file, limit)
        if not swap.exists() and (self._dirs["memory"] / "memory.swappiness").exists():
            self._write("memory", "memory.swappiness", 0)

    def _freeze(self, *, frozen: bool) -> None:
        # v2's freezer first: what it holds can still be killed
        if self._try_write("unified", "cgroup.freeze", int(frozen)):
            return
        if not self._try_write("freezer", "freezer.state", "FROZEN" if frozen else "THAWED"):
            raise SandboxUnavailable("This system cannot freeze a cell.", reason="no_freezer")

    def _distinct(self) -> list[Path]:
        return list(dict.fromkeys(self._dirs.values()))

    def _write(self, controller: str, file: str, value: int | str) -> None:
        (self._dirs[controller] / file).write_text(str(value))

    def _try_write(self, controller: str, file: str, value: int | str) -> bool:
        if controller not in self._dirs or not (self._dirs[controller] / file).exists():
            return False
        try:
            self._write(controller, file, value)
        except OSError:
            return False
        return True

    def _read(self, controller: str, file: str) -> str:
        if controller not in self._dirs:
            return ""
        try:
            return (self._dirs[controller] / file).read_text()
        except OSError:
            return ""

    def _number(self, controller: str, file: str) -> int | None:
        text = self._read(controller, file).strip()
        return int(text) if text.isdigit() else None

    def _counters(self, controller: str, file: str) -> dict[str, int]:
        rows = (line.split() for line in self._read(controller, file).splitlines())
        return {row[0]: int(row[1]) for row in rows if len(row) == 2 and row[1].isdigit()}


class CgroupTree:
    """The groups of one warden's cells: `cellblock/NAME/CELL` in every hierarchy that is used."""

    def __init__(self, kind: str, bases: Mapping[str, Path]) -> None:
        self._kind = kind
        self._bases = bases

    @classmethod
    def detect(cls, name: str, root: Path = Path("/sys/fs/cgroup")) -> CgroupTree | None:
        """Make the tree of that name below the root, or below this process's own group where it may not.

        Returns None where memory and pids cannot both be limited: then no cell is bounded by a group.
        """
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no name for a tree of groups")
        return _detect_v2(name, root) if (root / "cgroup.controllers").exists() else _detect_v1(name, root)

    def describe(self) -> str:
        """Say in one line what is limited and how."""
        return f"{self._kind}: {', '.join(sorted(self._bases))} below {self._bases['memory']}"

    def create(self, cell_id: str, limits: Limits) -> Cgroup:
        """Make a cell's groups with its limits. Raises SandboxUnavailable."""
        group = self.open(cell_id)
        made: list[Path] = []
        try:
            for file in group.procs_files():
                file.parent.mkdir()
                made.append(file.parent)
            group.apply(limits)
        except (OSError, SandboxUnavailable) as error:
            for directory in made:
                _removed(directory)
            if isinstance(error, SandboxUnavailable):
                raise
            raise SandboxUnavailable(
                f"The control group of a cell cannot be made: {error}.", reason="cgroup_refused"
            ) from error
        return group

    def open(self, cell_id: str) -> Cgroup:
        """Return the groups of a cell, made or not."""
        if not _NAME.fullmatch(cell_id):
            raise ValueError(f"{cell_id!r} is no cell's id")
        return Cgroup(cell_id, {controller: base / cell_id for controller, base in self._bases.items()})

    def leftovers(self) -> list[str]:
        """Return the ids of all cells that have a group, in any hierarchy."""
        return sorted(
            {entry.name for base in set(self._bases.values()) for entry in base.iterdir() if entry.is_dir()}
        )

    def remove(self) -> None:
        """Remove the tree's own directories, if no cell is left in them."""
        _discard(self._bases.values())


def _detect_v1(name: str, root: Path) -> CgroupTree | None:
    own = own_groups()
    bases: dict[str, Path] = {}
    for controller in (*_NEEDED, *_V1_WANTED):
        # co-mounted controllers are links to one directory
        if base := _first_made(name, (root / controller).resolve(), own.get(controller, "/"), "cgroup.procs"):
            bases[controller] = base
    if any(controller not in bases for controller in _NEEDED):
        _discard(bases.values())
        return None
    # v2 without controllers still kills and freezes; the old freezer holds what it froze even against SIGKILL
    if base := _first_made(name, root / "unified", own.get("", "/"), "cgroup.kill"):
        bases["unified"] = base
    elif base := _first_made(name, root / "freezer", own.get("freezer", "/"), "freezer.state"):
        bases["freezer"] = base
    return CgroupTree("cgroup v1", bases)


def _detect_v2(name: str, root: Path) -> CgroupTree | None:
    own = root / own_groups().get("", "/").lstrip("/")
    for top in dict.fromkeys((root, own)):
        base = top / PARENT / name
        try:
            base.mkdir(parents=True, exist_ok=True)
            for group in (top, top / PARENT, base):
                delegate(group)
        except OSError:
            _discard([base])
            continue
        return CgroupTree("cgroup v2", dict.fromkeys((*_NEEDED, "cpu", "unified"), base))
    return None


def delegate(group: Path, needed: Iterable[str] = _NEEDED, wanted: Iterable[str] = ("cpu",)) -> None:
    """Let the children of a v2 group have controllers. Raises OSError when one that is needed cannot be had.

    A group other than the root may not hold processes beside such children, so those of this process's own
    group (a service's, a container's) move into a child `host` first, should the kernel insist.
    """
    offered = (group / "cgroup.controllers").read_text().split()
    enabled = (group / "cgroup.subtree_control").read_text().split()
    if missing := [controller for controller in needed if controller not in offered]:
        raise OSError(errno.ENOENT, f"no {', '.join(missing)} controller", str(group))
    add = [c for c in (*needed, *wanted) if c in offered and c not in enabled]
    if not add:
        return
    order = " ".join(f"+{controller}" for controller in add)
    try:
        (group / "cgroup.subtree_control").write_text(order)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        _vacate(group)
        (group / "cgroup.subtree_control").write_text(order)


def _vacate(group: Path) -> None:
    if str(os.getpid()) not in (group / "cgroup.procs").read_text().split():
        raise OSError(errno.EBUSY, "processes of others are in it", str(group))
    shelter = group / "host"
    shelter.mkdir(exist_ok=True)
    for pid in (group / "cgroup.procs").read_text().split():
        with contextlib.suppress(ProcessLookupError):
            (shelter / "cgroup.procs").write_text(pid)


def own_groups(text: str | None = None) -> dict[str, str]:
    """Return this process's group by controller, the v2 one under "", as /proc/self/cgroup lists them."""
    groups = {}
    for line in (Path("/proc/self/cgroup").read_text() if text is None else text).splitlines():
        _, controllers, path = line.split(":", 2)
        groups.update(dict.fromkeys(controllers.split(","), path))
    return groups


def _first_made(name: str, hierarchy: Path, own: str, marker: str) -> Path | None:
    """Make the tree's directory at the hierarchy's root, else below the own group; None if neither can be."""
    for top in dict.fromkeys((hierarchy, hierarchy / own.lstrip("/"))):
        base = top / PARENT / name
        if not top.is_dir():
            continue
        try:
            base.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if (base / marker).exists() and os.access(base / marker, os.W_OK):
            return base
        _discard([base])
    return None


def _removed(directory: Path) -> bool:
    try:
        directory.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _discard(bases: Iterable[Path]) -> None:
    # what is above them is shared with other wardens, one of which may be making its own just now
    for base in set(bases):
        _removed(base)
