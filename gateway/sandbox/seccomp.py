"""A cell's system call filter as a classic BPF program, for a sandbox that takes it ready made.

One program does what firejail does with five: the keep-list, the other ABIs (i386, x32) closed, no new
namespaces, unix sockets only, and no memory that is written and then executed unless the profile allows it.
Protocol: linux/seccomp.h, linux/filter.h, linux/audit.h.
"""

from __future__ import annotations

import csv
import errno
import functools
import os
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path

from gateway.errors import SandboxUnavailable

ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
X32_BIT = 0x40000000

# struct seccomp_data: where the number, the architecture and the low half of an argument lie
NUMBER, ARCHITECTURE = 0, 4
LOAD, EQUAL, AT_LEAST, ANY_BIT, AND, RETURN = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
ALLOW, ERROR = 0x7FFF0000, 0x00050000

NEW_NAMESPACES = 0x7E020000
AF_UNIX = 1
PROT_WRITE, PROT_EXEC, SHM_EXEC = 2, 4, 0o100000


def instruction(code: int, value: int, yes: int = 0, no: int = 0) -> bytes:
    """Return one struct sock_filter; `yes` and `no` are how many instructions a comparison skips."""
    return struct.pack("=HBBI", code, yes, no, value)


def argument(index: int) -> bytes:
    """Load the low 32 bits of a call's argument: of those that are checked here the kernel reads no more."""
    return instruction(LOAD, 16 + 8 * index)


def refuse(number: int) -> bytes:
    """End with an error."""
    return instruction(RETURN, ERROR | number)


PASS = instruction(RETURN, ALLOW)
DENY = refuse(errno.EPERM)

# What a kept call still may not do. Each rule ends the program on every path.
RULES: Mapping[str, bytes] = {
    "clone": argument(0) + instruction(ANY_BIT, NEW_NAMESPACES, 0, 1) + DENY + PASS,
    # its flags lie in memory, which no filter sees; the C library then falls back on clone
    "clone3": refuse(errno.ENOSYS),
    "socket": argument(0) + instruction(EQUAL, AF_UNIX, 1, 0) + refuse(errno.EAFNOSUPPORT) + PASS,
    "socketpair": argument(0) + instruction(EQUAL, AF_UNIX, 1, 0) + refuse(errno.EAFNOSUPPORT) + PASS,
}
_NO_EXECUTION = argument(2) + instruction(ANY_BIT, PROT_EXEC, 0, 1) + DENY + PASS
NEVER_WRITTEN_AND_EXECUTED: Mapping[str, bytes] = {
    "mmap": argument(2)
    + instruction(AND, PROT_WRITE | PROT_EXEC)
    + instruction(EQUAL, PROT_WRITE | PROT_EXEC, 0, 1)
    + DENY
    + PASS,
    "mprotect": _NO_EXECUTION,
    "pkey_mprotect": _NO_EXECUTION,
    "shmat": argument(2) + instruction(ANY_BIT, SHM_EXEC, 0, 1) + DENY + PASS,
    # a file that is written through one mapping and executed through another
    "memfd_create": DENY,
}


@functools.cache
def numbers() -> Mapping[str, Mapping[str, int]]:
    """Return the number of every system call by name and architecture, from the kernel's own headers (6.1).

    An architecture that has no such call (`open` on aarch64) is left out.
    """
    with Path(__file__).with_name("syscalls.csv").open(newline="") as file:
        return {
            row["name"]: {machine: int(row[machine]) for machine in ARCHITECTURES if row[machine]}
            for row in csv.DictReader(file)
        }


def unknown(keep: Iterable[str]) -> list[str]:
    """Return the names that no architecture knows; `$NUMBER` is its own number."""
    return [name for name in keep if not name.startswith("$") and name not in numbers()]


def program(keep: Iterable[str], *, write_execute: bool, machine: str | None = None) -> bytes:
    """Compile a keep-list for an architecture, this machine's by default; any other call answers EPERM.

    Raises:
        SandboxUnavailable: there is no table of this architecture's calls.
    """
    machine = machine or os.uname().machine
    if machine not in ARCHITECTURES:
        raise SandboxUnavailable(f"There is no table of system calls for {machine}.", reason="architecture")
    rules = RULES if write_execute else {**RULES, **NEVER_WRITTEN_AND_EXECUTED}
    code = [
        instruction(LOAD, ARCHITECTURE),
        instruction(EQUAL, ARCHITECTURES[machine], 1, 0),
        DENY,
        instruction(LOAD, NUMBER),
    ]
    if machine == "x86_64":
        code += [instruction(AT_LEAST, X32_BIT, 0, 1), DENY]
    for name in keep:
        number = int(name[1:]) if name.startswith("$") else numbers()[name].get(machine)
        if number is not None:
            rule = rules.get(name, PASS)
            code += [instruction(EQUAL, number, 0, len(rule) // len(PASS)), rule]
    return b"".join([*code, DENY])
