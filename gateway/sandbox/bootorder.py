"""The order that a proved cell's boot step gets: what to become, with which environment, limits and files."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gateway.errors import BadRequest
from gateway.models import Limits
from gateway.sandbox import attendant
from gateway.sandbox.cell import Cell
from gateway.sandbox.profile import SandboxProfile
from gateway.sandbox.users import CellUser
from gateway.sandbox.wire import LaunchOrder

SYSTEM_READ = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/etc", "/opt", "/proc")
SYSTEM_PYTHON = "/usr/bin/python3"
# sockets are made with this umask, so that the gateway's group may connect to them
KERNEL_UMASK = 0o007
# Pools that would start a thread or process for each core of the host, not of the cell.
_THREAD_COUNTS = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "LOKY_MAX_CPU_COUNT",
    "POLARS_MAX_THREADS",
    "RAYON_NUM_THREADS",
)


def boot_order(
    order: LaunchOrder,
    profile: SandboxProfile,
    cell: Cell,
    environment: Path | None,
    boot: Path,
    *,
    programs: Mapping[str, str],
) -> dict[str, Any]:
    """Return the order for a cell's boot step, whose file is `boot`. Raises BadRequest.

    `programs` are the texts of the attendant and of the guest's module, for a cell that has them.
    """
    file = str(cell.ipc / "c.json")
    argv = [argument.replace("{connection_file}", file) for argument in order.argv]
    shown = [*([str(environment)] if environment else []), *profile.files.read_only]
    ipc, share = [str(cell.ipc)], order.share
    if share and not share.writable:
        shown.append(share.path)
    return {
        **program(argv, environment),
        "environment": kernel_environment(cell.user, profile, environment, order.env, limits=order.limits),
        # what is made in a shared directory is the user's as any other file
        "umask": 0o022 if share else KERNEL_UMASK,
        "limits": rlimits(order.limits, profile, bounded_memory=cell.cgroup is not None),
        "directory": share.path if share else str(cell.user.home),
        "rules": {
            "read": [*SYSTEM_READ, *shown, str(boot)],
            "write": [str(cell.user.home), "/tmp", "/dev/shm", *([] if order.tied else ipc)],  # noqa: S108
            "use": ["/dev"],
            "share": [share.path] if share and share.writable else [],
            "bind": ipc,
        },
        **({"preload": list(order.preload)} if order.pooled else {}),
        **programs,
    }


def programs() -> dict[str, str]:
    """Return the texts that a cell with an attendant gets within its order."""
    return {"attendant": attendant.text(), "guest": Path(__file__).with_name("guest.py").read_text()}


def attended(order: LaunchOrder, profile: SandboxProfile) -> bool:
    """Tell whether a cell has an attendant: nobody could ask that of a tied one for anything."""
    return profile.attendant and not order.tied


def interpreter(argv: tuple[str, ...], environment: Path | None) -> list[str]:
    """Return the Python, with its options, that runs the boot step: the kernel's own where it is Python."""
    module = python_module(argv, environment)
    if module is None or environment is None:
        return [SYSTEM_PYTHON, "-I"]
    return [str(environment / "bin" / "python"), "-I", *argv[1:module]]


def program(argv: list[str], environment: Path | None) -> dict[str, Any]:
    """Return what the boot step becomes: a module in its own process, or a program by exec."""
    module = python_module(argv, environment)
    if module is not None and environment is not None:
        return {"module": argv[module + 1], "arguments": argv[module + 2 :]}
    if environment is not None and (environment / "bin" / argv[0]).exists():
        argv = [str(environment / "bin" / argv[0]), *argv[1:]]
    return {"exec": argv}


def python_module(argv: list[str] | tuple[str, ...], environment: Path | None) -> int | None:
    """Return the index of `-m` where a kernelspec's argv is the environment's Python running a module."""
    if environment is None or not Path(argv[0]).name.startswith("python") or "-m" not in argv[1:-1]:
        return None
    index = argv.index("-m")
    return index if all(option.startswith("-X") for option in argv[1:index]) else None


def takes_variables(argv: tuple[str, ...], environment: Path | None) -> bool:
    """Tell whether the kernel of a pooled cell can be told variables when it is claimed: see boot.Pool."""
    module = python_module(argv, environment)
    return module is not None and argv[module + 1].partition(".")[0] in {"ipykernel", "ipykernel_launcher"}


def rlimits(limits: Limits, profile: SandboxProfile, *, bounded_memory: bool) -> dict[str, int]:
    """Return the limits that the boot step lowers in itself, by their names in `resource`."""
    wanted = {
        "RLIMIT_CORE": 0,
        "RLIMIT_MEMLOCK": 1 << 20,
        "RLIMIT_MSGQUEUE": 0,
        "RLIMIT_NOFILE": limits.open_files,
        "RLIMIT_FSIZE": limits.file_bytes,
        "RLIMIT_NPROC": limits.pids,
        "RLIMIT_SIGPENDING": profile.rlimits.sigpending,
    }
    if not bounded_memory:
        # without a cgroup, address space is the only bound; libraries reserve far more of it than they use
        wanted["RLIMIT_AS"] = max(4 << 30, math.ceil(limits.memory_bytes * 4))
    return wanted


def kernel_environment(
    user: CellUser,
    profile: SandboxProfile,
    environment: Path | None,
    env: Mapping[str, str],
    *,
    limits: Limits,
) -> dict[str, str]:
    """Return the whole environment of a kernel, built from nothing.

    `env` holds the kernelspec's variables under the request's, their names checked by the caller; neither
    they nor the profile can change who the cell is.

    Raises:
        BadRequest: a value holds a zero.
    """
    cores = str(math.ceil(limits.cpus))
    system = "/usr/local/bin:/usr/bin:/bin"
    complete = {
        "PATH": f"{environment}/bin:{system}" if environment else system,
        "LANG": "C.UTF-8",
        **dict.fromkeys(_THREAD_COUNTS, cores),
        "MPLCONFIGDIR": f"{user.home}/.config/matplotlib",
        **profile.environment,
        **env,
        "HOME": str(user.home),
        "USER": user.name,
        "LOGNAME": user.name,
        "SHELL": "/bin/bash",
    }
    # a kernel that polls this pid would find it gone at once: in the cell it is another's
    complete.pop("JPY_PARENT_PID", None)
    for name, value in complete.items():
        if "\0" in value:
            raise BadRequest(f"The environment variable {name[:64]} holds a zero.")
    return complete
