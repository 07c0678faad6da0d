"""A forked program: what it is given, that nobody waits for its beginning, and how its failure is told."""

from __future__ import annotations

import os
import signal
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from gateway.sandbox.spawn import EXIT_NOT_STARTED, Spawned

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SHELL = "/bin/sh"
LOOK = (
    "umask; pwd; echo $$ $(cut -d' ' -f6 /proc/$$/stat); ls /proc/$$/fd; "
    "grep SigIgn /proc/$$/status; env; cat"
)


@pytest.fixture
def spawn() -> Iterator[Callable[..., Spawned]]:
    """Spawn programs whose standard input says `given`, and end them afterwards."""
    spawned: list[Spawned] = []

    def start(*command: str, **options: Any) -> Spawned:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.send(b"given\n")
            options = {"descriptors": (), "steps": (), **options}
            spawned.append(Spawned(command, {"ONLY": "this"}, stdin=theirs.fileno(), **options))
        return spawned[-1]

    yield start
    for each in spawned:
        each.kill()
        ended(each)
        os.close(each.stderr)


def ended(process: Spawned) -> int:
    """Wait for a process's end and return its exit code."""
    deadline = time.monotonic() + 10
    while (code := process.poll()) is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return code


def said(process: Spawned) -> str:
    """Return all that a process says on its standard error until its end."""
    ended(process)
    return os.read(process.stderr, 1 << 16).decode()


def test_it_has_what_it_is_given_and_nothing_else(spawn: Callable[..., Spawned]) -> None:
    """A session, directory, mask, environment, descriptors and signals of its own, whatever is open here."""
    reader, writer = os.pipe()
    os.set_inheritable(reader, True)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    process = spawn(SHELL, "-c", f"exec >&2; {LOOK}", descriptors=(writer,))
    lines = said(process).splitlines()
    assert lines[:3] == ["0077", "/", f"{process.pid} {process.pid}"]
    assert set(lines[3:7]) == {"0", "1", "2", str(writer)}
    assert "ONLY=this" in lines
    assert not any(line.startswith(("HOME=", "PATH=")) for line in lines)
    assert lines[7].startswith("SigIgn:")
    assert int(lines[7].split()[1], 16) & 1 << (signal.SIGPIPE - 1) == 0
    assert lines[-1] == "given"
    os.close(reader)
    os.close(writer)


def test_nobody_waits_for_its_steps(spawn: Callable[..., Spawned], tmp_path: Path) -> None:
    """They are taken in their order, in the new process, before the program."""
    file = tmp_path / "steps"
    steps = (lambda: time.sleep(0.4), lambda: file.write_text(f"{os.getpid()}"))
    begun = time.monotonic()
    process = spawn(SHELL, "-c", f"cat {file} >&2", steps=steps)
    assert time.monotonic() - begun < 0.3
    assert process.poll() is None
    assert said(process) == str(process.pid)
    assert process.poll() == 0


def refuse() -> None:
    """Fail as a mount may."""
    raise PermissionError(1, "no mount for you")


@pytest.mark.parametrize(
    ("command", "steps", "why"),
    [
        ((SHELL, "-c", "echo run >&2"), (refuse,), "no mount for you"),
        (("/nowhere/firejail",), (), "No such file or directory"),
    ],
)
def test_who_cannot_begin_says_why_and_ends(
    spawn: Callable[..., Spawned], command: tuple[str, ...], steps: tuple[Callable[[], None], ...], why: str
) -> None:
    """The program does not run after a step that failed, and nothing of this process goes on in the fork."""
    process = spawn(*command, steps=steps)
    words = said(process)
    assert why in words
    assert "run" not in words
    assert process.poll() == EXIT_NOT_STARTED


def test_it_is_killed_once(spawn: Callable[..., Spawned]) -> None:
    """Its end is told by the signal's number, and a second kill is none."""
    process = spawn("/bin/sleep", "60")
    process.kill()
    assert ended(process) == -signal.SIGKILL
    process.kill()
    assert process.poll() == -signal.SIGKILL
