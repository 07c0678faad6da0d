"""A real attendant without a cell: the program that cells get, beside something that sleeps for a kernel."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import types
from pathlib import Path
from typing import TYPE_CHECKING

from gateway.kernels.processes import CellProcesses
from gateway.kernels.toolcalls import Desks
from gateway.models import Limits
from gateway.sandbox import attendant
from gateway.settings import ProcessesSettings
from tests.doubles import ManualClock

if TYPE_CHECKING:
    from collections.abc import Iterator

START = """
import os, socket, sys
program = {"__name__": "attendant"}
exec(compile(sys.stdin.read(), "<attendant>", "exec"), program)
link, door, kernel = map(int, sys.argv[1:])
os.set_inheritable(link, False)
os.set_inheritable(door, False)
program["attend"](socket.socket(fileno=link), socket.socket(fileno=door), kernel, python=True)
"""


class RealAttendant:
    """The process, and this side's end of its socket: what the warden keeps."""

    def __init__(self, home: Path) -> None:
        self.ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.door = f"\0test-{secrets.token_hex(8)}"
        self.kernel = subprocess.Popen(["sleep", "1000"])
        pidfd = os.pidfd_open(self.kernel.pid)
        with theirs, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as door:
            door.bind(self.door)
            door.listen(64)
            fds = (theirs.fileno(), door.fileno(), pidfd)
            self.process = subprocess.Popen(
                [sys.executable, "-c", START, *map(str, fds)],
                stdin=subprocess.PIPE,
                pass_fds=fds,
                env={**os.environ, "HOME": str(home)},
            )
        os.close(pidfd)
        assert self.process.stdin is not None
        self.process.stdin.write(attendant.text().encode())
        self.process.stdin.close()

    async def attend(self, _cell: str) -> int:
        """Hand this side's end out, as `sandbox.link.WardenLink` does."""
        return os.dup(self.ours.fileno())

    def processes(
        self, *, desks: Desks | None = None, answer_s: float = 10.0, **settings: int
    ) -> CellProcesses:
        """Return a gateway's side of it."""
        return CellProcesses(
            self,  # type: ignore[arg-type]
            "0123456789ab",
            Limits(),
            settings=ProcessesSettings(**settings),
            clock=ManualClock(),
            desks=Desks() if desks is None else desks,
            answer_s=answer_s,
        )

    def guest(self) -> types.ModuleType:
        """Return the module that code in a cell calls tools by, which goes to this one."""
        module = types.ModuleType("cellblock")
        path = Path(attendant.__file__).parent.with_name("guest.py")
        exec(compile(path.read_text(), "<cellblock>", "exec"), module.__dict__)
        module.__dict__["_DOOR"] = self.door
        return module

    def end(self) -> None:
        """End it and its kernel."""
        for process in (self.kernel, self.process):
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGKILL)
            process.wait()
        self.ours.close()


@contextlib.contextmanager
def attending(home: Path) -> Iterator[RealAttendant]:
    """Give a real attendant, ended afterwards."""
    found = RealAttendant(home)
    try:
        yield found
    finally:
        found.end()
