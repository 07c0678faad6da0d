"""What the attendant sees of its cell: the processes in it, and the system around them."""

import contextlib
import os
import sys
from typing import Any

# processes that are listed, what is shown of a command line and of a name, and of all of it
LISTED, SHOWN, NAMED, SIZE = 2000, 200, 64, 900_000
PACKAGES = 5000
TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")


def tree() -> list[dict[str, Any]]:
    """Return every process of the cell, by its pid."""
    found, size = [], 0
    for pid in sorted(int(name) for name in os.listdir("/proc") if name.isdigit())[:LISTED]:
        # gone meanwhile, or hidden
        with contextlib.suppress(OSError, ValueError, IndexError):
            seen = process(pid)
            size += len(seen["command"]) * 4 + 300
            if size > SIZE:
                break
            found.append(seen)
    return found


def process(pid: int) -> dict[str, Any]:
    """Return what /proc says of a process. Raises OSError when it is gone."""
    head, _, rest = contents(f"/proc/{pid}/stat").rpartition(b")")
    fields = rest.split()
    command = contents(f"/proc/{pid}/cmdline").rstrip(b"\0").replace(b"\0", b" ")
    return {
        "pid": pid,
        "parent": int(fields[1]),
        "name": printable(head.partition(b"(")[2], NAMED),
        "command": printable(command, SHOWN),
        "state": printable(fields[0], 1),
        "memory_bytes": int(fields[21]) * PAGE,
        "cpu_s": (int(fields[11]) + int(fields[12])) / TICKS,
        "threads": int(fields[17]),
    }


def printable(text: bytes, most: int) -> str:
    """Return the beginning of what a process may have chosen, as text that can be shown."""
    decoded = text[: most * 4].decode("utf-8", "replace")[:most]
    return "".join(char if char.isprintable() else "?" for char in decoded)


def contents(path: str) -> bytes:
    """Return the first bytes of a file of /proc."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(descriptor, 4096)
    finally:
        os.close(descriptor)


def snapshot(*, packages: bool) -> dict[str, Any]:
    """Return the system as it looks from here; limits are the gateway's to tell."""
    system = os.uname()
    home = os.environ.get("HOME", "/")
    up_s = float(contents("/proc/uptime").split()[0])
    began_s = int(contents("/proc/1/stat").rpartition(b")")[2].split()[19]) / TICKS
    return {
        "hostname": system.nodename,
        "system": f"{system.sysname} {system.release} {system.machine}",
        "python": sys.version.split()[0],
        "user": os.environ.get("USER", ""),
        "home": home,
        "uptime_s": max(0.0, round(up_s - began_s, 2)),
        "processes": tree(),
        "file_systems": [space(path) for path in (home, "/tmp", "/dev/shm") if os.path.isdir(path)],  # noqa: S108
        "packages": distributions() if packages else {},
    }


def space(path: str) -> dict[str, Any]:
    """Return how large a file system is, and what it still takes."""
    found = os.statvfs(path)
    return {
        "path": path,
        "size_bytes": found.f_blocks * found.f_frsize,
        "free_bytes": found.f_bavail * found.f_frsize,
    }


def distributions() -> dict[str, str]:
    """Return the Python distributions that can be imported here, by name."""
    from importlib.metadata import distributions

    found: dict[str, str] = {}
    for each in distributions():
        name = each.metadata["Name"]
        if name and len(found) < PACKAGES:
            found[str(name)[:NAMED]] = str(each.version)[:NAMED]
    return dict(sorted(found.items(), key=lambda item: item[0].lower()))
