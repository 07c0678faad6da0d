"""The machine that a benchmark runs on: what it is, and whether others use it."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from importlib.metadata import version
from pathlib import Path

from benchmarks.environments import ROOT, python_of

KERNEL_PYTHON = "/srv/cellblock/envs/python3/bin/python"
QUIET_LOAD = 1.0
SETTLE_S = 120.0


def load() -> float:
    """Return the load of the last minute."""
    return os.getloadavg()[0]


def settle() -> float:
    """Wait, not for long, until the machine is quiet (its own installing counts as load); return the load."""
    deadline = time.monotonic() + SETTLE_S
    while load() > QUIET_LOAD and time.monotonic() < deadline:
        time.sleep(2)
    return load()


def description() -> dict[str, object]:
    """Describe the machine and the versions of all that is measured."""
    return {
        "cpu": _field("/proc/cpuinfo", "model name"),
        "cores": len(os.sched_getaffinity(0)),
        "memory_mb": int(_field("/proc/meminfo", "MemTotal").split()[0]) // 1024,
        "system": _field("/etc/os-release", "PRETTY_NAME", "=").strip('"'),
        "linux": platform.release(),
        "python": platform.python_version(),
        "kernel python": _says([KERNEL_PYTHON, "-c", "import platform; print(platform.python_version())"]),
        "ipykernel": _package(KERNEL_PYTHON, "ipykernel"),
        "jupyter_kernel_gateway": _package(python_of("kernel-gateway"), "jupyter_kernel_gateway"),
        "jupyter_server": _package(python_of("jupyter-server"), "jupyter_server"),
        "aiohttp (client)": version("aiohttp"),
        "pyzmq (client)": version("pyzmq"),
        "firejail": _says(["firejail", "--version"]).splitlines()[0],
        "cellblock": _says(["git", "-C", str(ROOT), "describe", "--always", "--dirty"]),
        "user": "root" if os.geteuid() == 0 else "not root",
    }


def _field(path: str, name: str, separator: str = ":") -> str:
    for line in Path(path).read_text().splitlines():
        key, _, value = line.partition(separator)
        if key.strip() == name:
            return value.strip()
    return "unknown"


def _package(python: str, name: str) -> str:
    return _says([python, "-c", f"from importlib.metadata import version; print(version({name!r}))"])


def _says(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip() or "unknown"
