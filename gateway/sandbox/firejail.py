"""The firejail command line of one cell, and the environment that it starts with."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from plumbum.machines.local import LocalCommand

from gateway.errors import ConfigurationError
from gateway.models import Limits
from gateway.sandbox.alternatives import Alternatives
from gateway.sandbox.backend import CellPaths, Invocation, check_there
from gateway.sandbox.namespace import FirejailUser
from gateway.sandbox.profile import SandboxProfile
from gateway.sandbox.users import CellUser

MINIMUM = (0, 9, 72)

# What no profile can switch off: each option with what it closes.
BASE: tuple[tuple[str, str], ...] = (
    ("quiet", "errors still reach stderr; its many remarks do not"),
    ("noprofile", "no profile file of the system's or a user's is read: this command line is all"),
    ("net=none", "an own, empty network namespace; abstract sockets are the cell's own with it"),
    ("protocol=unix", "no socket family but unix, so no netlink, packet or vsock attack surface"),
    ("ipc-namespace", "no SysV memory, semaphores or queues of the host's"),
    ("dbus-user=none", "no session bus: it starts programs outside"),
    ("dbus-system=none", "no system bus, likewise"),
    ("x11=none", "no display: it reads keys and windows"),
    ("caps.drop=all", "no capability, even in the cell's own user namespace"),
    ("nonewprivs", "no set-uid program raises anyone"),
    ("noroot", "an own user namespace with one user; process limits count in it alone"),
    ("nogroups", "no supplementary groups"),
    ("restrict-namespaces", "no namespaces of the cell's making: they are the usual way to kernel holes"),
    ("seccomp.block-secondary", "no 32-bit system calls: a keep-list alone leaves them all open"),
    ("private-tmp", "an own /tmp and /var/tmp, charged to the cell's memory"),
    ("private-dev", "only null, zero, full, random, urandom, tty, ptys and an own /dev/shm"),
    ("private-cwd=~", "starts in the home, not where the gateway stands"),
    ("disable-mnt", "no /mnt, /media and their like"),
    ("machine-id", "a random machine id"),
    ("hostname=kernel", "not the host's name"),
    ("nosound", "no sound devices and servers"),
    ("novideo", "no cameras"),
    ("no3d", "no graphics devices"),
    ("notv", "no TV devices"),
    ("nodvd", "no optical drives"),
    ("nou2f", "no security keys"),
    ("noinput", "no keyboards and mice"),
    ("noprinters", "no printers"),
    ("deterministic-exit-code", "firejail ends with the kernel's own code"),
    ("deterministic-shutdown", "the cell ends with the kernel; one stubborn child would keep it for ever"),
    ("blacklist=/root", "root's home"),
    ("blacklist=/boot", "kernel images"),
    ("blacklist=/sys", "devices, cgroups and the host's hardware"),
    ("blacklist=/proc/config.gz", "the kernel's configuration helps to choose an exploit"),
    ("blacklist=/proc/kcore", "physical memory"),
    ("blacklist=/proc/keys", "the kernel's keyrings"),
    ("blacklist=/proc/key-users", "who has keyrings"),
    ("blacklist=/proc/sysrq-trigger", "reboots and dumps"),
    ("blacklist=/proc/kpagecount", "physical pages"),
    ("blacklist=/proc/kpageflags", "physical pages"),
    ("blacklist=/proc/kpagecgroup", "physical pages"),
    # a whitelist of what does not exist empties the whole top directory, but for what else is whitelisted
    ("whitelist=/opt/cellblock-none", "nothing of /opt but what the cell is given"),
    ("whitelist=/run/cellblock-none", "nothing of /run, likewise: sockets of daemons, other cells"),
    ("whitelist=/srv/cellblock-none", "nothing of /srv, likewise: other environments, data"),
    ("whitelist=/var/cellblock-none", "nothing of /var: logs, mail, databases, caches"),
)

# Top directories that every system has; all others are hidden.
_STANDARD = frozenset(
    {
        *("bin", "boot", "dev", "etc", "home", "lib", "lib32", "lib64", "libx32", "media", "mnt", "opt"),
        *("proc", "root", "run", "sbin", "srv", "sys", "tmp", "usr", "var"),
    }
)
# Firejail covers, hides or replaces these directories, or mounts them read-only and noexec.
_NOT_SHOWN = _STANDARD - {"opt", "run", "srv", "tmp", "usr"}
_NO_HOME = _STANDARD - {"home", "mnt", "opt", "run", "srv", "tmp"}
_PATH = re.compile(r"(/[\w.+@:=-]+)+")
_NOEXEC = {"home": "${HOME}", "tmp": "/tmp", "shm": "/dev/shm"}  # noqa: S108
# firejail's own bounds (MAX_ARGS, MAX_ARG_LEN); beyond them it refuses to start
_MAX_ARGUMENTS = 127
_MAX_ARGUMENT = 4096


class Firejail:
    """Composes the command lines of one firejail program.

    `settings` is the directory that root's cells get for /etc/firejail, and `alternatives` what they get for
    the system's; an ordinary user has the system's own.
    """

    shm = "/dev"

    def __init__(
        self, program: Path, *, settings: Path | None = None, alternatives: Alternatives | None = None
    ) -> None:
        if not program.is_absolute() or program.name != "firejail":
            # under any other name firejail takes itself for a link to the program of that name
            raise ConfigurationError(f"{program} is not the absolute path of a program called firejail.")
        self._program = program
        self._settings = settings
        self._alternatives = alternatives

    def invocation(
        self,
        profile: SandboxProfile,
        paths: CellPaths,
        argv: Sequence[str],
        *,
        user: CellUser,
        limits: Limits,
        leash: int,  # noqa: ARG002 - firejail's processes keep what they inherit
    ) -> Invocation:
        """Return what starts `argv` in a cell of the user's; see `backend.Backend`."""
        return Invocation(self.command(profile, paths, argv, limits=limits), firejail_environment(user))

    def become(self, user: CellUser) -> Callable[[], None]:
        """Return the step that gives root's firejail what it needs, and it to the user.

        Raises:
            ConfigurationError: there are no settings for cells of root's.
        """
        if self._settings is None:
            raise ConfigurationError("Firejail has no settings of its own here.")
        alternatives = self._alternatives.current() if self._alternatives else None
        return FirejailUser(user, self._settings, alternatives)

    def command(
        self, profile: SandboxProfile, paths: CellPaths, argv: Sequence[str], *, limits: Limits
    ) -> list[str]:
        """Return the command that runs `argv` in a cell. The directories must exist.

        Everything is on the command line, so there is no profile file that could be swapped or searched
        for. The program comes without `--` before it: with that firejail goes through the user's login shell.

        Raises:
            ConfigurationError: a path cannot be had in a cell, or the program is not absolute.
        """
        if not argv or not argv[0].startswith("/"):
            raise ConfigurationError("The program of a cell must be an absolute path.")
        options = [option for option, _ in BASE]
        options += self._files(profile, paths)
        if not profile.memory.write_execute:
            options.append("memory-deny-write-execute")
        options += [
            f"rlimit-nofile={limits.open_files}",
            f"rlimit-nproc={limits.pids}",
            f"rlimit-fsize={limits.file_bytes}",
            f"rlimit-sigpending={profile.rlimits.sigpending}",
            f"seccomp.keep={','.join(profile.syscalls.keep)}",
        ]
        bound = LocalCommand(str(self._program))[[f"--{option}" for option in options]][list(argv)]
        command: list[str] = bound.formulate()
        if len(command) > _MAX_ARGUMENTS:
            raise ConfigurationError(
                f"The cell needs {len(command)} arguments and firejail takes {_MAX_ARGUMENTS}: "
                "shorten the profile's blacklist, the kernelspec's argv, or the host's top directory."
            )
        for argument in command:
            if len(os.fsencode(argument)) > _MAX_ARGUMENT or "\0" in argument:
                raise ConfigurationError(
                    f"An argument of the cell is too long or holds a zero: {argument[:60]!r}."
                )
        return command

    def _files(self, profile: SandboxProfile, paths: CellPaths) -> list[str]:
        shares = [paths.boot, *paths.read_only_shares, *map(Path, profile.files.read_only)]
        if paths.environment is not None:
            shares.append(paths.environment)
        for share in shares:
            _check(share, "shared directory", _NOT_SHOWN)
        _check(paths.ipc, "ipc directory", _NOT_SHOWN | {"usr", "opt", "srv"})
        _check(paths.home, "home", _NO_HOME)
        home, writable = [f"private={paths.home}"], [paths.ipc]
        noexec = dict(_NOEXEC)
        if paths.share is not None:
            # firejail shows nothing of a home that it replaces, and empties one that it shows something of
            _check(paths.share, "shared directory", _NOT_SHOWN - {"home"})
            home, noexec["home"] = [], str(paths.home)
            writable.append(paths.home)
            (writable if paths.share_writable else shares).append(paths.share)
        # all of /usr is there, read-only
        shown = sorted(share for share in shares if share.parts[1] != "usr")
        visible = {path.parts[1] for path in [*shown, *writable]}
        # with any whitelist below /run, firejail adds the whole of /run/user/UID by itself: the user's own
        # sockets (podman, agents, editors) unless something in it is whitelisted by name
        runtime = Path("/run/user")
        hidden = [] if any(runtime in path.parents for path in [*shown, *writable]) else [runtime]
        return [
            *home,
            f"private-etc={','.join(profile.files.private_etc)}",
            *(f"whitelist={path}" for path in [*shown, *writable]),
            *(f"read-only={path}" for path in shown),
            *(f"blacklist={path}" for path in [*profile.files.blacklist, *hidden]),
            *(f"blacklist={path}" for path in host_blacklist() if path.parts[1] not in visible),
            *(f"noexec={noexec[place]}" for place in profile.exec.noexec),
        ]


def host_blacklist(root: Path = Path("/")) -> list[Path]:
    """Return what stands at the top of the host beside the standard directories, for every cell to hide.

    Links are left out: what they lead to is hidden, or not, where it is.

    Raises:
        ConfigurationError: a name there cannot be given to firejail, so it could not be hidden.
    """
    found = []
    for path in sorted(root.iterdir()):
        if path.name in _STANDARD or path.is_symlink():
            continue
        if not re.fullmatch(r"[\w.+@:=-][\w .+@:=-]*", path.name):
            raise ConfigurationError(f"{str(path)!r} cannot be hidden from cells: rename or remove it.")
        found.append(path)
    return found


def _check(path: Path, what: str, refused: frozenset[str]) -> None:
    """Refuse a path that firejail would read as something else, or cannot put into a cell."""
    text = str(path)
    if not _PATH.fullmatch(text) or ".." in path.parts:
        raise ConfigurationError(
            f"The {what} {text!r} must be absolute, of letters, digits and . _ + @ : = - only."
        )
    if path.parts[1] in refused:
        raise ConfigurationError(
            f"The {what} {path} cannot be had in a cell: firejail replaces /{path.parts[1]} there."
        )
    check_there(path, what)


def firejail_environment(user: CellUser) -> dict[str, str]:
    """Return firejail's own environment, built from nothing; the kernel's comes with the boot's order."""
    return {
        "PATH": "/usr/bin:/bin",
        "HOME": str(user.home),
        "USER": user.name,
        "LOGNAME": user.name,
        "LANG": "C.UTF-8",
        # without this firejail may think itself in a container and run the program with no sandbox at all
        "container": "docker",
    }
