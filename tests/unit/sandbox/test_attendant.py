"""What a cell's attendant is made of, and how the boot step leaves it behind."""

from __future__ import annotations

import ast
import json
import os
import socket
import subprocess
import sys
import types
from pathlib import Path

import pytest

from gateway.sandbox import attendant, boot
from gateway.sandbox.bootorder import programs
from gateway.sandbox.handshake import MAX_ORDER

# what the boot step does once it is sealed, without a seal; then the kernel is a line of Python
LEAVE = """
import importlib.util, json, os, sys
spec = importlib.util.spec_from_file_location("boot", sys.argv[1])
boot = importlib.util.module_from_spec(spec)
spec.loader.exec_module(boot)
boot.DOOR = f"\\0test-{sys.argv[3]}"
boot.attend(int(sys.argv[2]), {"attendant": sys.stdin.read(), "module": "x"})
try:
    os.wait()
except ChildProcessError:
    print("no children", flush=True)
os.read(int(sys.argv[4]), 1)
"""


def stat(pid: int) -> tuple[str, int, int, int]:
    """Return a process's state, parent, group and session."""
    state, *numbers = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:4]
    parent, group, session = map(int, numbers)
    return state, parent, group, session


def test_it_is_one_text_of_the_standard_library_alone() -> None:
    """Nothing of the gateway's is imported in a cell, and the parts are one program."""
    for text in programs().values():
        for node in ast.walk(ast.parse(text)):
            names = [node.module] if isinstance(node, ast.ImportFrom) else []
            names += [each.name for each in node.names] if isinstance(node, ast.Import) else []
            assert {str(name).split(".")[0] for name in names} <= sys.stdlib_module_names
    namespace: dict[str, object] = {"__name__": "attendant"}
    exec(compile(attendant.text(), "<attendant>", "exec"), namespace)
    assert callable(namespace["attend"])


def test_the_order_has_room_for_it() -> None:
    """The texts and the largest environment that a launch may have fit into the one packet of an order."""
    assert len(json.dumps(programs())) + (160 << 10) < 212_992 < MAX_ORDER


def test_the_boot_step_leaves_it_behind() -> None:
    """It is no child of the kernel's, is called what it is, has one socket, and ends with the kernel."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    reader, writer = os.pipe()
    with theirs:
        numbers = map(str, (theirs.fileno(), os.getpid(), reader))
        kernel = subprocess.Popen(
            [sys.executable, "-c", LEAVE, boot.__file__, *numbers],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=(theirs.fileno(), reader),
            text=True,
        )
    assert kernel.stdin is not None
    assert kernel.stdout is not None
    kernel.stdin.write(attendant.text())
    kernel.stdin.close()
    ours.settimeout(10)
    word, descriptors, _, _ = socket.recv_fds(ours, 64, 1)
    assert word == b"with"
    with socket.socket(fileno=descriptors[0]) as link:
        link.settimeout(10)
        assert kernel.stdout.readline() == "no children\n"
        link.send(b'{"op": "hello", "epoch": "x"}\n')
        assert json.loads(link.recv(1 << 16).partition(b"\n")[0]) == {"op": "hello", "epoch": "x"}
        order = {"argv": ["sleep", "60"], "cwd": None, "env": {}, "stdin": False, "note": ""}
        link.send(b'{"op": "start", "id": 1, "p": 1}\n' + json.dumps(order).encode())
        pid = json.loads(link.recv(1 << 16).partition(b"\n")[2])["pid"]
        found = stat(pid)[1]
        _, parent, _, session = stat(found)
        assert Path(f"/proc/{found}/cmdline").read_bytes().rstrip(b"\0") == b"cellblock-attendant"
        assert Path(f"/proc/{found}/comm").read_text() == "attendant\n"
        assert kernel.pid not in {parent, session}
        assert session != found
        kernel.kill()
        kernel.wait()
        kernel.stdout.close()
        assert link.recv(1) == b""
    os.close(reader)
    os.close(writer)
    ours.close()


def test_a_cell_that_cannot_have_it_does_without(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where its parts cannot be had the kernel goes on, and the warden is told."""

    def refused(*_arguments: object) -> int:
        raise OSError(1, "refused")

    monkeypatch.setattr(os, "pidfd_open", refused)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        boot.attend(theirs.detach(), {})
        word, descriptors, _, _ = socket.recv_fds(ours, 64, 1)
    assert (word, descriptors) == (b"without", [])


def test_the_guests_module_is_made_when_it_is_imported() -> None:
    """Nothing of it runs before; its source can be read; no other name is answered for."""
    guest = boot.Guest("ran = True\n")
    assert guest.find_spec("cellblocks") is None
    spec = guest.find_spec("cellblock")
    module = types.ModuleType("cellblock")
    assert spec.loader is guest
    assert not hasattr(module, "ran")
    guest.exec_module(module)
    assert module.__dict__["ran"] is True
    assert guest.get_source("cellblock") == "ran = True\n"
