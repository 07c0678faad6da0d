"""The table of attacks: what each tries from inside a cell, and what its output means."""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path

from gateway.models import DeathReason, ExecutionResult, ExecutionStatus, Frozen

TABLE = Path(__file__).with_name("attacks.json")
# each of these leaves its kernel broken or its cell full, so it gets a kernel of its own
CONSUMING = frozenset({"exhaustion", "protocol"})
# p01: the kernel is the second process of a bubblewrap cell, so low numbers are its own threads: /proc does
# not list these, and a signal may be sent to them. They are no host's processes, which is what p01 is about.
# z04: /tmp is a tmpfs of the cell's, with mount points for what lies below it; the host's directories are not
# what is changed there.
IN_BUBBLEWRAP = {
    "p01": (
        "if x.isdigit()]): continue",
        "if x.isdigit()]) or os.path.exists(f'/proc/self/task/{pid}'): continue",
    ),
    "z04": ("print('BREACH')", "print('HARMLESS' if d.startswith('/tmp/') else 'BREACH')"),
}
_KILLED = {DeathReason.OOM, DeathReason.KILLED, DeathReason.CRASHED}


class Verdict(StrEnum):
    """How an attack ended, for those who made it in vain or not."""

    HELD = "held"
    FAILED = "FAILED"
    OPEN = "open in single-tenant mode"
    NOT_APPLICABLE = "not applicable"


class Attack(Frozen):
    """One attack: Python code for a kernel, and the expression that its output must match.

    The word BREACH or FORGED in the output is a failure whatever else it says. `hazard`: it damages a machine
    that does not contain it. `single_tenant`: why a cell of an ordinary user's gateway does not hold it.
    `runner`: what is looked at from outside.
    """

    id: str
    group: str
    code: str
    expect: str
    why: str
    check: str
    timeout: float
    hazard: bool
    single_tenant: str = ""
    runner: str = ""

    @property
    def consumes(self) -> bool:
        """Whether its kernel is of no use afterwards."""
        return self.group in CONSUMING

    @property
    def possible(self) -> bool:
        """Whether it can be made on this machine: the numbers of system calls are those of x86-64."""
        return "L.syscall" not in self.code or platform.machine() == "x86_64"

    def filled(self, names: Mapping[str, object], *, backend: str = "firejail") -> str:
        """Return its code with what the placeholders @@NAME@@ stand for."""
        code = self.code
        if backend == "bubblewrap":
            code = code.replace(*IN_BUBBLEWRAP.get(self.id, ("", "")))
        for name, value in names.items():
            code = code.replace(f"@@{name}@@", str(value))
        return code

    def failure(self, said: str) -> str:
        """Tell what in an output shows that the attack was not held; empty if it was."""
        for line in said.splitlines():
            if "BREACH" in line or "FORGED" in line:
                return line.strip()[:300]
        if re.search(self.check, said) is None:
            return f"It did not end as it should: {said.strip()[-300:] or 'no output'}"
        return ""


def load() -> list[Attack]:
    """Return the table, in order of its groups."""
    return [Attack.model_validate(entry) for entry in json.loads(TABLE.read_text(encoding="utf-8"))]


def outcome(result: ExecutionResult) -> str:
    """Return all that an execution said, and DEAD or GATEWAY where it could not end by itself."""
    words = [result.stdout, result.stderr]
    if result.error:
        words += [result.error.ename, result.error.evalue]
    if result.status is ExecutionStatus.DEAD or result.reason in _KILLED:
        words.append("DEAD")
    if result.status is ExecutionStatus.TIMEOUT:
        words.append("GATEWAY")
    return "\n".join(words)
