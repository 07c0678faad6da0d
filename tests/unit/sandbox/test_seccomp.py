"""System call filters: real programs run under them, and meet what the profile says."""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import os
import struct
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from gateway.errors import SandboxUnavailable
from gateway.sandbox import seccomp
from gateway.sandbox.profile import load_profile, profile_dirs
from gateway.sandbox.syscalls import WHY_NOT

if TYPE_CHECKING:
    from collections.abc import Iterable

DEFAULT = load_profile("default", profile_dirs())
KEEP = DEFAULT.syscalls.keep
NATIVE = os.uname().machine
NR = {name: known[NATIVE] for name, known in seccomp.numbers().items() if NATIVE in known}
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2

PREAMBLE = """
import ctypes, errno, json, mmap, os, socket, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
def call(number, *arguments):
    ctypes.set_errno(0)
    got = libc.syscall(*map(ctypes.c_long, (number, *arguments, *[0] * (6 - len(arguments)))))
    return errno.errorcode.get(ctypes.get_errno(), "?") if got < 0 else "done"
def tried(what, *arguments):
    try:
        what(*arguments)
        return "done"
    except OSError as error:
        return errno.errorcode[error.errno]
"""


class Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def under(filter_program: bytes, code: str, *arguments: Any) -> Any:
    """Run Python under a filter; the code leaves its findings in `found`."""

    def put() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        wanted = Program(len(filter_program) // 8, filter_program)
        assert libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
        assert libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(wanted)) == 0

    script = f"{PREAMBLE}\ngiven = json.loads(sys.argv[1])\n{code}\nprint(json.dumps(found))"
    done = subprocess.run(
        [sys.executable, "-I", "-c", script, json.dumps(arguments)],
        preexec_fn=put,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


STRICT = seccomp.program(KEEP, write_execute=False)
LOOSE = seccomp.program(KEEP, write_execute=True)


def test_every_shipped_name_has_a_number() -> None:
    """No name of a shipped profile, and none that may never be kept, is unknown to the table."""
    assert seccomp.unknown(KEEP) == []
    # gone from the kernel, or never there, on both architectures
    assert not set(NR) & set(seccomp.unknown(WHY_NOT))
    assert seccomp.unknown(["read", "$444", "raed"]) == ["raed"]


@pytest.mark.parametrize(
    ("name", "x86_64", "aarch64"),
    [
        ("read", 0, 63),
        ("open", 2, None),
        ("execve", 59, 221),
        ("clone", 56, 220),
        ("renameat", 264, 38),
        ("renameat2", 316, 276),
        ("clone3", 435, 435),
        ("landlock_create_ruleset", 444, 444),
    ],
)
def test_numbers_are_the_kernels(name: str, x86_64: int, aarch64: int | None) -> None:
    """A few numbers that everybody knows, of both architectures."""
    known = seccomp.numbers()[name]

    assert (known["x86_64"], known.get("aarch64")) == (x86_64, aarch64)


def test_programs_are_whole() -> None:
    """A program fits the kernel's bound, and no comparison jumps out of it."""
    for machine in seccomp.ARCHITECTURES:
        code = seccomp.program(KEEP, write_execute=False, machine=machine)
        lines = list(struct.iter_unpack("=HBBI", code))
        assert len(lines) < 4096
        for index, (operation, yes, no, _) in enumerate(lines):
            if operation & 0x07 == 0x05:
                assert index + 1 + max(yes, no) < len(lines)
        assert lines[-1][0] == seccomp.RETURN


def test_an_unknown_machine_has_no_filter() -> None:
    """Better no cell than one with the wrong numbers."""
    with pytest.raises(SandboxUnavailable):
        seccomp.program(KEEP, write_execute=False, machine="riscv64")


def test_an_ordinary_program_runs() -> None:
    """Files, threads, children, pipes and unix sockets work under the strict filter."""
    code = """
import subprocess, threading, tempfile
thread = threading.Thread(target=os.getpid)
thread.start()
thread.join()
left, right = socket.socketpair()
left.send(b"x")
with tempfile.TemporaryFile() as file:
    file.write(b"y")
found = [subprocess.run(["/bin/echo", "z"], capture_output=True, text=True).stdout, right.recv(1).decode()]
"""
    assert under(STRICT, code) == ["z\n", "x"]


def refused(filter_program: bytes, names: Iterable[str]) -> dict[str, str]:
    """Make calls with no arguments that mean anything, and tell which errors they gave."""
    wanted = {name: NR[name] for name in names if name in NR}
    code = "found = {name: call(number, -1, -1, -1) for name, number in given[0].items()}"
    result: dict[str, str] = under(filter_program, code, wanted)
    return result


def test_what_may_never_be_kept_is_refused() -> None:
    """Every dangerous call meets the filter, not the kernel's own check of its arguments."""
    found = refused(STRICT, WHY_NOT)

    assert set(found.values()) == {"EPERM"}
    assert {"mount", "ptrace", "bpf", "unshare", "setns", "io_uring_setup", "keyctl", "add_key"} <= set(found)


def test_kept_calls_reach_the_kernel() -> None:
    """The same nonsense gives the kernel's own errors where a call is kept."""
    found = refused(STRICT, ["read", "connect", "pidfd_open", "fchdir"])

    assert set(found.values()) <= {"EBADF", "EINVAL", "EFAULT"}


def test_calls_that_nobody_knows_yet_are_refused() -> None:
    """Numbers beyond the table, up to where x32 begins, answer EPERM."""
    code = "found = [call(number, -1, -1, -1) for number in (467, 500, 9999, 0x3fffffff)]"

    assert set(under(STRICT, code)) == {"EPERM"}


def test_x32_is_closed() -> None:
    """The numbers of the x32 ABI, kept ones included, are refused."""
    code = "found = [call(0x40000000 + number, -1, -1, -1) for number in given[0]]"

    assert set(under(STRICT, code, [NR["read"], NR["getpid"], NR["execve"], 512, 545])) == {"EPERM"}


def test_i386_is_closed() -> None:
    """`int 0x80` from 64-bit code is another architecture's call to the kernel: not even getpid is had."""
    assert NATIVE == "x86_64", "write this for another architecture before you trust it there"
    code = """
# mov eax, NUMBER; push rbx; xor ebx, ebx; int 0x80; pop rbx; ret
def i386(number):
    area = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    area.write(b"\\xb8" + struct.pack("<I", number) + b"\\x53\\x31\\xdb\\xcd\\x80\\x5b\\xc3")
    return ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(area)))()
found = [i386(number) for number in (20, 21, 26, 102)]
"""
    # getpid, mount, ptrace, socketcall
    assert under(LOOSE, code) == [-errno.EPERM] * 4


NAMESPACES = {"user": 0x10000000, "net": 0x40000000, "pid": 0x20000000, "mnt": 0x20000, "cgroup": 0x2000000}


@pytest.mark.parametrize("flag", [*NAMESPACES.values(), 0x4000000, 0x8000000])
def test_no_new_namespaces(flag: int) -> None:
    """Clone with any namespace's flag is refused, alone or with others; clone3 does not exist."""
    code = "found = [call(given[0], given[1] | 0x200 | 17), call(given[2], 0, 0)]"

    assert under(LOOSE, code, NR["clone"], flag, NR["clone3"]) == ["EPERM", "ENOSYS"]


def test_only_unix_sockets() -> None:
    """No family but unix, in pairs as well; a family hidden in the high half is none."""
    code = """
found = {
    "families": {tried(socket.socket, family) for family in (2, 10, 16, 17, 40, 38)},
    "unix": tried(socket.socket, socket.AF_UNIX),
    "pair": [tried(socket.socketpair, socket.AF_UNIX), call(given[1], 2, 1, 0, 0)],
    "high": call(given[0], (1 << 32) | 2, 1, 0),
}
found["families"] = sorted(found["families"])
"""
    found = under(LOOSE, code, NR["socket"], NR["socketpair"])

    assert found == {
        "families": ["EAFNOSUPPORT"],
        "unix": "done",
        "pair": ["done", "EAFNOSUPPORT"],
        "high": "EAFNOSUPPORT",
    }


MEMORY = f"""
R, W, X = mmap.PROT_READ, mmap.PROT_WRITE, mmap.PROT_EXEC
libc.mmap.restype = ctypes.c_void_p
area = libc.mmap(None, 4096, R | W, 0x22, -1, 0)
found = [
    tried(lambda: mmap.mmap(-1, 4096, prot=R | W | X)),
    tried(lambda: mmap.mmap(-1, 4096, prot=R | X)),
    call({NR["mprotect"]}, area, 4096, R | X),
    call({NR["mprotect"]}, area, 4096, R | W | X),
    call({NR["mprotect"]}, area, 4096, R),
    tried(os.memfd_create, "x"),
]
"""


def test_memory_is_written_or_executed() -> None:
    """The strict filter lets no memory become executable after it was written; the loose one does."""
    assert under(STRICT, MEMORY) == ["EPERM", "done", "EPERM", "EPERM", "done", "EPERM"]
    assert under(LOOSE, MEMORY) == ["done"] * 6


def test_python_has_the_constants_that_the_filter_has() -> None:
    """The numbers in the filter are the system's own."""
    assert (seccomp.PROT_WRITE, seccomp.PROT_EXEC) == (mmap.PROT_WRITE, mmap.PROT_EXEC)
