"""Checks of the host that need no cell: firejail, namespaces, control groups, users, disk."""

from __future__ import annotations

import os
import pwd
import shutil
import stat
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from secrets import token_hex

from gateway.doctor.findings import Finding, fail, guarded, ok, warn
from gateway.sandbox import bubblewrap as bwrap
from gateway.sandbox.backend import version
from gateway.sandbox.cgroup import CgroupTree
from gateway.sandbox.daemon import FIREJAIL_CONFIG, unusable
from gateway.sandbox.firejail import MINIMUM, host_blacklist
from gateway.sandbox.sealing import landlock_abi
from gateway.settings import SandboxSettings, Settings

FIREJAIL_DIR = Path("/etc/firejail")
SYSTEM = Path("/proc/sys")
# features that a cell is made of: switched off in firejail.config, cells do not start, or start with less
NEEDED = ("disable-mnt", "network", "seccomp", "userns", "whitelist")
LEAST_FREE, GOOD_FREE = 256 << 20, 2 << 30
FULL_LANDLOCK, NET_LANDLOCK = 6, 4


def examine(settings: Settings, *, root: bool) -> list[Finding]:
    """Look at the host as root's gateway needs it, or an ordinary user's. Blocks for some milliseconds."""
    sandbox = settings.sandbox
    checks: dict[str, Callable[[], Iterator[Finding]]] = {
        "firejail": partial(firejail, sandbox.firejail, root=root),
        "firejail settings": partial(firejail_settings, FIREJAIL_DIR, root=root),
        "bubblewrap": partial(bubblewrap, sandbox.bubblewrap, SYSTEM),
        "namespaces": partial(namespaces, SYSTEM),
        "control groups": partial(control_groups, root=root),
        "landlock": partial(landlock, landlock_abi()),
        "users": partial(users, sandbox, root=root),
        "top directories": top_directories,
        "disk": partial(disk, settings.state_dir),
    }
    return [finding for check, look in checks.items() for finding in guarded(check, look)]


def firejail(program: Path, *, root: bool) -> Iterator[Finding]:
    """Tell whether firejail is there, new enough, and has the SUID bit where it needs it and nowhere else."""
    check = "firejail"
    if refusal := unusable("firejail", program, MINIMUM):
        yield fail(check, refusal, "Install firejail 0.9.72 or newer: apt-get install firejail.")
        return
    facts = program.stat()
    found = ".".join(map(str, version(program, "firejail")))
    if facts.st_uid != 0 or facts.st_mode & 0o022:
        yield fail(
            check,
            f"{program} can be changed by others than root.",
            f"chown root:root {program}; chmod go-w {program}",
        )
        return
    yield ok(check, f"{program} is version {found}.")
    check, suid = "firejail SUID bit", bool(facts.st_mode & stat.S_ISUID)
    if root and suid:
        yield warn(
            check,
            "Cells are made without it, and every local user may use it.",
            f"If nobody else needs firejail: dpkg-statoverride --update --add root root 0755 {program}",
        )
    elif root:
        yield ok(check, "Absent, and not needed: the warden is root's.")
    elif suid:
        yield ok(check, "Present, as an ordinary user's cells need it.")
    else:
        yield fail(
            check,
            "Without it an ordinary user has no cells.",
            f"chmod u+s {program}, or run the gateway as root.",
        )


def firejail_settings(directory: Path, *, root: bool) -> Iterator[Finding]:
    """Tell what firejail's own settings weaken, for the cells or for the machine."""
    check = "firejail settings"
    if root:
        yield ok(check, "The warden's cells bring their own; those of the system do not reach them.")
    switches = read_switches(directory / "firejail.config")
    off = [name for name in NEEDED if switches.get(name) == "no"]
    if switches.get("seccomp-error-action", "EPERM") != "EPERM":
        off.append("seccomp-error-action")
    if off and not root:
        yield fail(
            check, f"firejail.config changes {', '.join(off)}.", "Remove these lines from firejail.config."
        )
    elif not root:
        yield ok(check, "Nothing that cells need is switched off.")
    wanted = dict(line.split() for line in FIREJAIL_CONFIG.splitlines())
    # force-nonewprivs and restricted-network change what other programs of this machine may do; join is risky
    loose = [
        f"{name} {wanted[name]}"
        for name in ("force-nonewprivs", "join")
        if switches.get(name) != wanted[name]
    ]
    allowed = directory / "firejail.users"
    if not allowed.exists():
        why = "Every local user may run it with its privilege."
        yield warn("firejail.users", why, f"Name those who may, one in a line, in {allowed}.")
    elif not root and pwd.getpwuid(os.getuid()).pw_name not in allowed.read_text().split():
        yield fail("firejail.users", "This user is not in it.", f"Add the user to {allowed}.")
    else:
        yield ok("firejail.users", "Only the users in it may run firejail.")
    if loose and not root:
        yield warn("firejail.config", "Tighter settings are to be had.", f"Set: {'; '.join(loose)}.")


def bubblewrap(program: Path, system: Path) -> Iterator[Finding]:
    """Tell whether profiles with this backend have cells; none is needed where no profile names it."""
    check = "bubblewrap"
    needed = "Only kernels whose profile has backend bubblewrap need it"
    if refusal := unusable("bubblewrap", program, bwrap.MINIMUM):
        yield warn(check, f"{refusal} {needed}; they answer 503.", "apt-get install bubblewrap")
    elif number(system / "kernel/unprivileged_userns_clone") == 0:
        why = "Ordinary users may make no user namespaces, which it is made of."
        yield warn(check, f"{why} {needed}; they answer 503.", "sysctl -w kernel.unprivileged_userns_clone=1")
    else:
        found = ".".join(map(str, version(program, "bubblewrap")))
        yield ok(check, f"{program} is version {found}. {needed}.")


def read_switches(path: Path) -> dict[str, str]:
    """Return the settings of a firejail.config by name."""
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    pairs = (line.split(None, 1) for line in lines if line.strip() and not line.startswith("#"))
    return {pair[0]: pair[1].strip() for pair in pairs if len(pair) == 2}


def namespaces(system: Path) -> Iterator[Finding]:
    """Tell whether user namespaces can be made, which each cell is one of."""
    most = number(system / "user/max_user_namespaces")
    if most == 0:
        yield fail("user namespaces", "The system allows none.", "sysctl -w user.max_user_namespaces=10000")
    elif number(system / "kernel/unprivileged_userns_clone") == 0:
        yield ok("user namespaces", "firejail can make them; unprivileged users cannot.")
    else:
        yield ok("user namespaces", "They can be made; cells are kept from making more.")


def number(path: Path) -> int | None:
    """Return the number in a file of /proc/sys; None where there is none."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def control_groups(*, root: bool) -> Iterator[Finding]:
    """Tell which limits can be set on a cell as a whole, by making and removing a tree of groups."""
    tree = CgroupTree.detect(f"doctor-{token_hex(4)}")
    if tree:
        yield ok("control groups", f"Writable, {tree.describe()}.")
        tree.remove()
        return
    why = "Memory and processes of a cell cannot be limited as a whole."
    if root:
        yield fail(
            "control groups", why, "Give this machine or container its memory and pids controllers, writable."
        )
    else:
        yield warn(
            "control groups",
            why,
            "Run as root, or with a delegated group: systemd-run --user -p Delegate=yes",
        )


def landlock(abi: int) -> Iterator[Finding]:
    """Tell how much of Landlock, the second layer in a cell, this kernel has."""
    if abi >= FULL_LANDLOCK:
        yield ok("landlock", f"ABI {abi}: files, TCP, abstract sockets and signals.")
    elif abi:
        what = "files and TCP" if abi >= NET_LANDLOCK else "files alone"
        yield warn("landlock", f"ABI {abi}: {what}.", "Linux 6.12 or newer has all of it.")
    else:
        yield warn(
            "landlock",
            "Absent: there is no second file layer.",
            "Boot with lsm=landlock,… on Linux 5.13 or newer.",
        )


def users(sandbox: SandboxSettings, *, root: bool) -> Iterator[Finding]:
    """Tell whether the pool's uids are free or the pool's own, and whether users can be made."""
    if not root:
        why = "An ordinary user's cells all share this user's uid."
        yield warn("users", why, "Run as root where more than one person uses the gateway.")
        return
    pool = range(sandbox.pool_first_uid, sandbox.pool_first_uid + sandbox.pool_size)
    entries = [entry for entry in pwd.getpwall() if entry.pw_uid in pool]
    strangers = [entry.pw_name for entry in entries if not entry.pw_name.startswith(sandbox.pool_prefix)]
    if len(strangers) == sandbox.pool_size:
        yield fail("users", "Every uid of the pool is somebody else's.", "Set sandbox.pool_first_uid.")
    elif strangers:
        yield warn(
            "users",
            f"{len(strangers)} of the pool's uids are others': {', '.join(strangers[:3])}.",
            "They are passed over; set sandbox.pool_first_uid to have them all.",
        )
    elif len(entries) < sandbox.pool_size and shutil.which("useradd") is None:
        yield fail("users", "Pool users cannot be made: there is no useradd.", "apt-get install passwd")
    else:
        yield ok(
            "users",
            f"uids {pool[0]} to {pool[-1]} are the pool's; {len(entries)} users exist, others are made.",
        )


def top_directories() -> Iterator[Finding]:
    """Tell whether all that stands at the top of this host can be hidden from cells."""
    hidden = [path.name for path in host_blacklist()]
    yield ok("top directories", f"Hidden from cells beside the usual: {', '.join(hidden) or 'none'}.")


def disk(state_dir: Path) -> Iterator[Finding]:
    """Tell whether there is room for the state directory."""
    there = next(path for path in (state_dir, *state_dir.parents) if path.exists())
    free = shutil.disk_usage(there).free
    said = f"{free / (1 << 30):.1f} GiB free below {there}."
    if free < LEAST_FREE:
        yield fail("disk", said, "Make room, or choose another state_dir.")
    elif free < GOOD_FREE:
        yield warn("disk", said, "Make room.")
    else:
        yield ok("disk", said)
