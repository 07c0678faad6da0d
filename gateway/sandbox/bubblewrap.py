"""The bubblewrap command of one cell: a second way to make the same cell, without any SUID program."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from plumbum.machines.local import LocalCommand

from gateway.errors import ConfigurationError
from gateway.models import Limits
from gateway.sandbox import seccomp
from gateway.sandbox.backend import ALIAS, CellPaths, Invocation, check_there
from gateway.sandbox.profile import SandboxProfile
from gateway.sandbox.users import CellUser

# the first with --disable-userns and sizes of tmpfs
MINIMUM = (0, 8, 0)

# What no profile can switch off: each option with what it closes.
BASE: tuple[tuple[tuple[str, ...], str], ...] = (
    (("--unshare-user",), "an own user namespace with one user; process limits count in it alone"),
    (("--unshare-pid",), "no process but the cell's own, and its init takes all with it"),
    (("--unshare-net",), "an own, empty network namespace; abstract sockets are the cell's own with it"),
    (("--unshare-ipc",), "no SysV memory, semaphores or queues of the host's"),
    (("--unshare-uts",), "not the host's name, and none that could be set"),
    (("--unshare-cgroup-try",), "the cgroup's place in the host's tree is not shown"),
    (("--disable-userns",), "no namespaces of the cell's making, besides the filter that says the same"),
    (("--die-with-parent",), "the cell ends with the program that made it, and that with the warden"),
    (("--new-session",), "no terminal of anybody's to write into"),
    (("--cap-drop", "ALL"), "no capability, even in the cell's own user namespace"),
    (("--hostname", "kernel"), "not the host's name"),
    (("--ro-bind", "/usr", "/usr"), "the system's programs; nothing of / is there but what is named here"),
    (("--proc", "/proc"), "the cell's own processes"),
    (("--dev", "/dev"), "only null, zero, full, random, urandom, tty and ptys"),
    (("--remount-ro", "/dev"), "no files beside these"),
)

# Files of /proc that tell of the host or reach it; those that this kernel has are covered.
_HIDDEN_PROC = (
    *("config.gz", "kallsyms", "kcore", "key-users", "keys", "kmsg", "kpagecgroup", "kpagecount"),
    *("kpageflags", "latency_stats", "sched_debug", "sysrq-trigger", "timer_list", "timer_stats"),
    "vmallocinfo",
)
# Top directories that are the system's, links into /usr on most.
_SYSTEM = ("bin", "lib", "lib32", "lib64", "libx32", "sbin")
# Where nothing of the host's can be shown, and where no home or sockets can be.
_NOT_SHOWN = frozenset({*_SYSTEM, "boot", "dev", "etc", "proc", "root", "sys"})
_NO_HOME = _NOT_SHOWN | {"usr"}
# Users below are the system's; names of people are nobody's business in a cell.
_FIRST_PERSON, _NOBODY = 1000, 65_534


class Bubblewrap:
    """Composes the commands of one bubblewrap program, which runs as the cell's own user from the start."""

    shm = "/dev/shm"  # noqa: S108

    def __init__(self, program: Path) -> None:
        if not program.is_absolute():
            raise ConfigurationError(f"{program} is not an absolute path.")
        self._program = program

    def invocation(
        self,
        profile: SandboxProfile,
        paths: CellPaths,
        argv: Sequence[str],
        *,
        user: CellUser,
        limits: Limits,
        leash: int,
    ) -> Invocation:
        """Return what starts `argv` in a cell of the user's; see `backend.Backend`.

        The options come by a descriptor: the command line, which anybody on the host can read and the cell
        as well (/proc/1/cmdline), holds no path but the program's own.

        Raises:
            ConfigurationError: a path cannot be had in a cell, or the program is not absolute.
            SandboxUnavailable: this machine's system calls are not known.
        """
        if not argv or not argv[0].startswith("/"):
            raise ConfigurationError("The program of a cell must be an absolute path.")
        with contextlib.ExitStack() as undo:
            descriptors: list[int] = []

            def holding(data: bytes) -> str:
                descriptors.append(held(data))
                undo.callback(os.close, descriptors[-1])
                return str(descriptors[-1])

            rules = seccomp.program(profile.syscalls.keep, write_execute=profile.memory.write_execute)
            options = [
                *(word for option, _ in BASE for word in option),
                *_system(),
                *_etc(profile.files.private_etc, user, holding),
                *_space("/tmp", limits.tmp_bytes),  # noqa: S108
                *("--symlink", "/tmp", "/var/tmp"),  # noqa: S108
                *_space("/dev/shm", limits.shm_bytes),  # noqa: S108
                *_shown(profile, paths, user),
                *_hidden([*(f"/proc/{name}" for name in _HIDDEN_PROC), *profile.files.blacklist]),
                *("--remount-ro", "/", "--chdir", str(user.home)),
                *("--sync-fd", str(leash), "--seccomp", holding(rules)),
            ]
            if any("\0" in word for word in [*options, *argv]):
                raise ConfigurationError("An argument of the cell holds a zero.")
            given = holding("\0".join(options).encode() + b"\0")
            bound = LocalCommand(str(self._program))["--args", given, "--"][list(argv)]
            undo.pop_all()
        environment = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"}
        return Invocation(bound.formulate(), environment, tuple(descriptors))

    def become(self, user: CellUser) -> Callable[[], None]:
        """Return the step that makes root the user for good: bubblewrap needs no privilege."""
        return lambda: os.setresuid(user.uid, user.uid, user.uid)


def held(data: bytes) -> int:
    """Return a descriptor that reads as the data; its owner closes it."""
    descriptor = os.memfd_create("cell", os.MFD_CLOEXEC)
    with open(descriptor, "wb", closefd=False) as file:
        file.write(data)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def _system() -> list[str]:
    """Show the top directories of the system's programs: the links as links."""
    options: list[str] = []
    for path in (Path("/", name) for name in _SYSTEM):
        if path.is_symlink():
            options += ["--symlink", str(path.readlink()), str(path)]
        elif path.is_dir():
            options += ["--ro-bind", str(path), str(path)]
    return options


def _etc(names: Sequence[str], user: CellUser, holding: Callable[[bytes], str]) -> list[str]:
    """Show the named entries of /etc that there are; of passwd and group the system's lines and one more."""
    own = {
        "passwd": f"{user.name}:x:{user.uid}:{user.gid}::{user.home}:/bin/bash",
        "group": f"{user.name}:x:{user.gid}:",
    }
    options: list[str] = []
    for name in names:
        path = Path("/etc", name)
        if name in own:
            lines = "\n".join([*_system_lines(path), own[name], ""])
            options += ["--perms", "0444", "--ro-bind-data", holding(lines.encode()), str(path)]
        elif path.exists():
            options += ["--ro-bind", str(path), str(path)]
    return options


def _system_lines(path: Path) -> list[str]:
    """Return the lines of passwd or group that are the system's."""
    found = []
    for line in path.read_text(errors="replace").splitlines():
        fields = line.split(":")
        if len(fields) > 2 and fields[2].isdigit():
            number = int(fields[2])
            if number < _FIRST_PERSON or number == _NOBODY:
                # who is in a group is about people, too
                found.append(":".join([*fields[:3], ""]) if path.name == "group" else line)
    return found


def _space(path: str, size: int) -> list[str]:
    return ["--perms", "1777", "--size", str(size), "--tmpfs", path]


def _shown(profile: SandboxProfile, paths: CellPaths, user: CellUser) -> list[str]:
    """Show the cell's own directories and what is shared with it."""
    shares = [paths.boot, *paths.read_only_shares, *map(Path, profile.files.read_only)]
    if paths.environment is not None:
        shares.append(paths.environment)
    for share in shares:
        _check(share, "shared directory", _NOT_SHOWN)
    _check(paths.ipc, "ipc directory", _NO_HOME)
    _check(paths.home, "home", _NO_HOME)
    if not user.home.is_absolute() or len(user.home.parts) < 2 or user.home.parts[1] in _NO_HOME:
        raise ConfigurationError(f"No home can be had in a cell at {user.home}.")
    home = user.home if paths.share is None else paths.home
    given: list[str] = []
    if paths.share is not None:
        _check(paths.share, "shared directory", _NO_HOME)
        given = ["--bind" if paths.share_writable else "--ro-bind", str(paths.share), str(paths.share)]
    # all of /usr is there, read-only
    shown = sorted(share for share in shares if share.parts[1] != "usr")
    named = ("--symlink", str(home), str(ALIAS)) if home.parent == ALIAS.parent and home != ALIAS else ()
    return [
        *("--bind", str(paths.home), str(home)),
        *named,
        *given,
        *(word for path in shown for word in ("--ro-bind", str(path), str(path))),
        *("--bind", str(paths.ipc), str(paths.ipc)),
    ]


def _hidden(paths: Iterable[str]) -> list[str]:
    """Cover paths: a directory by an empty one, anything else by a device that cannot be opened there."""
    options: list[str] = []
    for path in dict.fromkeys(os.path.realpath(path) for path in paths if os.path.lexists(path)):
        if os.path.isdir(path):  # noqa: PTH112 - pathlib raises where a part may not be searched
            options += ["--tmpfs", path, "--remount-ro", path]
        else:
            options += ["--ro-bind", "/dev/null", path]
    return options


def _check(path: Path, what: str, refused: frozenset[str]) -> None:
    """Refuse a path that is not what it seems, or cannot be had in a cell."""
    if not path.is_absolute() or ".." in path.parts or len(path.parts) < 2:
        raise ConfigurationError(f"The {what} {str(path)!r} must be an absolute path below /.")
    if path.parts[1] in refused:
        raise ConfigurationError(f"The {what} {path} cannot be had in a cell, which has its own there.")
    check_there(path, what)
