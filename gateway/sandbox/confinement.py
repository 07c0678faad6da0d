"""Proof, from outside, that a started process is confined."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from pathlib import Path

from gateway.errors import SandboxUnavailable

NAMESPACES = ("ipc", "mnt", "net", "pid", "user", "uts")
CAPABILITIES = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")


def status(pid: int) -> dict[str, str]:
    """Return /proc/PID/status as a mapping. Raises SandboxUnavailable when the process is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError as error:
        raise SandboxUnavailable("The cell ended before it could be proved.", reason="cell_ended") from error
    pairs = (line.split(":", 1) for line in lines if ":" in line)
    return {key: value.strip() for key, value in pairs}


def prove(
    pid: int, *, uid: int, parent: int, reported: Mapping[str, str], filtered: Mapping[str, int]
) -> int:
    """Prove that a process is confined and return the pid of its namespace's init.

    `parent` is the firejail process that was started; `reported` the namespaces as the boot step read them
    (`net:[…]`), used only where this process may not look itself (SUID firejail, single-tenant mode);
    `filtered` the errors that forbidden calls gave it: from outside one sees only that there are filters.

    Raises:
        SandboxUnavailable: anything is not as it must be; the message names all that is not.
    """
    facts = status(pid)
    failed = [f"{name} is not zero" for name in CAPABILITIES if int(facts.get(name, "1"), 16) != 0]
    if facts.get("NoNewPrivs") != "1":
        failed.append("NoNewPrivs is not 1")
    if facts.get("Seccomp") != "2":
        failed.append("Seccomp is not 2")
    failed += [f"the {name} filter is not in force" for name in absent_filters(filtered)]
    if uid == 0 or facts.get("Uid", "").split() != [str(uid)] * 4:
        failed.append(f"the uid is not {uid}")
    failed += [f"the {name} namespace is the host's" for name in shared_namespaces(pid, reported)]
    init = int(facts.get("PPid", "0"))
    above = status(init) if init > 1 else {}
    if above.get("NSpid", "").split()[1:] != ["1"] or above.get("PPid") != str(parent):
        failed.append("the process is not a child of its namespace's init")
    if failed:
        raise SandboxUnavailable(f"The cell is not confined: {'; '.join(failed)}.", reason="not_confined")
    return init


def shared_namespaces(pid: int, reported: Mapping[str, str]) -> list[str]:
    """List the namespaces that a process shares with this one, or that cannot be told apart."""
    shared = []
    for name in NAMESPACES:
        own = str(Path(f"/proc/self/ns/{name}").readlink())
        try:
            theirs = str(Path(f"/proc/{pid}/ns/{name}").readlink())
        except PermissionError:
            theirs = reported.get(name, own)
        except OSError:
            theirs = own
        if theirs == own or not theirs.startswith(f"{name}:["):
            shared.append(name)
    return shared


def absent_filters(filtered: Mapping[str, int]) -> list[str]:
    """List the filters that a boot step's forbidden calls did not meet; see `sealing.filtered`."""
    absent = [name for name in ("keep-list", "namespaces") if filtered.get(name) != errno.EPERM]
    return absent if filtered.get("protocol") else [*absent, "protocol"]
