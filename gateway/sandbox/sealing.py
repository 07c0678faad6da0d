"""Sealing, a part of the in-cell boot step: Landlock, limits, and what the filters answer. Stdlib only."""

from __future__ import annotations

import _socket
import ctypes
import os
import resource
import struct

# linux/landlock.h: syscall numbers are the same on every architecture
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
GET_VERSION, RULE_PATH_BENEATH = 1, 1
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1, 2, 4, 8
REMOVE_FILE, MAKE_CHAR, MAKE_SOCK, MAKE_FIFO = 1 << 5, 1 << 6, 1 << 9, 1 << 10
MAKE_BLOCK, MAKE_SYM, TRUNCATE, IOCTL_DEV = 1 << 11, 1 << 12, 1 << 14, 1 << 15
# How many file rights each ABI knows: asking for more than the kernel knows is an error
RIGHTS_BY_ABI = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
NET_ABI, SCOPE_ABI = 4, 6
NET_TCP, SCOPE_ALL = 0b11, 0b11
FILE_ONLY = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV
PR_SET_NO_NEW_PRIVS = 38

# Calls that do nothing where no filter stops them, as the kernel finds them wrong: a number that nobody has,
# and a clone whose two flags exclude each other (numbers: x86-64, and those that newer architectures share)
NO_CALL = 9999
CLONE = {"x86_64": 56}.get(os.uname().machine, 220)
CLONE_NEWUSER, CLONE_FS = 0x10000000, 0x200

libc = ctypes.CDLL(None, use_errno=True)


def landlock_abi() -> int:
    """Return the kernel's Landlock ABI, 0 where it has none."""
    abi: int = libc.syscall(CREATE_RULESET, None, 0, GET_VERSION)
    return max(0, abi)


def filtered() -> dict[str, int]:
    """Return the error that each of three forbidden calls gives: each stands for a filter of its own."""
    errors = {}
    for name, call in {"keep-list": (NO_CALL, 0), "namespaces": (CLONE, CLONE_NEWUSER | CLONE_FS)}.items():
        ctypes.set_errno(0)
        libc.syscall(*map(ctypes.c_long, (*call, 0, 0, 0, 0)))
        errors[name] = ctypes.get_errno()
    try:
        _socket.socket(_socket.AF_NETLINK, _socket.SOCK_RAW).close()
        errors["protocol"] = 0
    except OSError as error:
        errors["protocol"] = error.errno or 0
    return errors


def landlock(abi: int, rules: dict[str, list[str]]) -> None:
    """Restrict this process and its children to paths, each kind with rights of its own.

    To read and execute; to write; to use as they are; to share (written, but no links or sockets made: the
    host's programs would follow them); and to bind sockets in, where nothing else is made.
    """
    known = (1 << RIGHTS_BY_ABI.get(abi, 16)) - 1
    attributes = struct.pack("=Q", known)
    if abi >= NET_ABI:
        attributes += struct.pack("=Q", NET_TCP)
    if abi >= SCOPE_ABI:
        attributes += struct.pack("=Q", SCOPE_ALL)
    ruleset = check(libc.syscall(CREATE_RULESET, attributes, len(attributes), 0))
    readable = EXECUTE | READ_FILE | READ_DIR
    writable = known & ~(MAKE_CHAR | MAKE_BLOCK)
    usable = READ_FILE | READ_DIR | WRITE_FILE | TRUNCATE | IOCTL_DEV
    rights = {
        "read": readable,
        "write": writable,
        "use": usable,
        "share": writable & ~(MAKE_SOCK | MAKE_FIFO | MAKE_SYM),
        "bind": READ_FILE | READ_DIR | WRITE_FILE | REMOVE_FILE | MAKE_SOCK,
    }
    for kind, paths in rules.items():
        for path in paths:
            allow(ruleset, path, rights[kind] & known)
    check(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    check(libc.syscall(RESTRICT_SELF, ruleset, 0))
    os.close(ruleset)


def allow(ruleset: int, path: str, rights: int) -> None:
    """Add one path to a ruleset; a path that is not there needs no rule."""
    try:
        beneath = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    if not os.path.isdir(path):
        rights &= FILE_ONLY
    check(libc.syscall(ADD_RULE, ruleset, RULE_PATH_BENEATH, struct.pack("=Qi", rights, beneath), 0))
    os.close(beneath)


def check(result: int) -> int:
    """Return a system call's result, or raise the error that it left."""
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def lower(limits: dict[str, int]) -> None:
    """Lower resource limits, named as in `resource`; never raise one."""
    for name, value in limits.items():
        which = getattr(resource, name)
        hard = resource.getrlimit(which)[1]
        lowered = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(which, (lowered, lowered))
