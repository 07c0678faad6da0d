"""Starting a process, and what the attendant knows of one that it has started."""

import contextlib
import ctypes
import fcntl
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

from gateway.sandbox.attendant.wires import PIECE, Wires

# bytes of standard input that wait for their reader
INPUT_WAITING = 4 << 20
PR_SET_PDEATHSIG, FIONREAD = 1, 0x541B

libc = ctypes.CDLL(None, use_errno=True)


class Refused(Exception):
    """What stands against a request: a code and a sentence."""


class Child:
    """A process that was started, and the pipes to it.

    `changed` is called when it may be over: reaped, its end told, and nothing more to come through its pipes.
    """

    def __init__(
        self, wires: Wires, number: int, order: dict[str, Any], changed: Callable[["Child"], None]
    ) -> None:
        """Start it. Raises Refused."""
        self._wires = wires
        self._changed = changed
        self.number, self.note = number, order["note"]
        self.code: int | None = None
        self.sent = 0
        self.ended_at = 0.0
        self.forgotten = self.told = self._eof = False
        self._owed: dict[int, int] = {}
        self._waiting = bytearray()
        ends: list[int] = []
        try:
            ends += os.pipe() if order["stdin"] else (os.open(os.devnull, os.O_RDONLY), -1)
            for _ in range(2):
                ends += os.pipe()
            theirs = (ends[0], ends[3], ends[5])
            self.pid, self._pidfd = spawn(order, theirs)
        except OSError as error:
            close(*ends)
            raise Refused("no_room", f"No process can be started: {error.strerror}.") from None
        except Refused:
            close(*ends)
            raise
        close(*theirs)
        self._stdin, self._pipes = ends[1], {ends[2]: 1, ends[4]: 2}
        if self._stdin >= 0:
            os.set_blocking(self._stdin, False)
        for descriptor in self._pipes:
            os.set_blocking(descriptor, False)
            wires.source(descriptor, lambda descriptor=descriptor: self._read(descriptor))  # type: ignore[misc]
        wires.watch(self._pidfd, select.EPOLLIN, self._reap)

    @property
    def over(self) -> bool:
        """Whether nothing of it is left to look at."""
        return self.code is not None and self.told and not self._pipes

    def write(self, data: bytes, *, eof: bool) -> None:
        """Write to its standard input, as far as it reads; the rest waits. Raises Refused."""
        if self._stdin < 0 or self._eof:
            raise Refused("closed", "Its standard input is closed.")
        if len(self._waiting) + len(data) > INPUT_WAITING:
            raise Refused("full", "It has not read what was written before.")
        self._waiting += data
        self._eof = eof
        self._feed()

    def signal(self, number: int) -> None:
        """Signal it and those of its children that have not left its group. Raises Refused."""
        if self.code is not None:
            raise Refused("ended", "The process has ended.")
        # it is not reaped before this side has seen its end, so that its number is nobody else's
        kill(self.pid, number, group=True)

    def forget(self) -> None:
        """Tell of it no more; what it still writes is read into nothing."""
        self.forgotten = True
        self._changed(self)

    def _read(self, descriptor: int) -> None:
        try:
            data = os.read(descriptor, PIECE)
        except BlockingIOError:
            return
        if data:
            self._owed[descriptor] = self._owed.get(descriptor, 0) - len(data)
            if not self.forgotten:
                head = {"op": "output", "p": self.number, "fd": self._pipes[descriptor], "at": self.sent}
                self._wires.say(head, data)
            self.sent += len(data)
        else:
            self._wires.unsource(descriptor)
            os.close(descriptor)
            del self._pipes[descriptor]
        self._tell()

    def _reap(self, _events: int) -> None:
        _, status = os.waitpid(self.pid, 0)
        self.code, self.ended_at = os.waitstatus_to_exitcode(status), time.time()
        self._wires.unwatch(self._pidfd)
        os.close(self._pidfd)
        self._close_stdin()
        # others may hold its pipes and write on: what is in them now is what it has left
        for descriptor in self._pipes:
            size = fcntl.ioctl(descriptor, FIONREAD, b"\0" * 4)
            self._owed[descriptor] = int.from_bytes(size, sys.byteorder)
        self._tell()

    def _tell(self) -> None:
        """Tell of its end, after all that came before it."""
        if self.code is None:
            return
        if not self.told and not any(self._owed.get(descriptor, 0) > 0 for descriptor in self._pipes):
            self.told = True
            if not self.forgotten:
                self._wires.say({"op": "exit", "p": self.number, "code": self.code})
        self._changed(self)

    def _feed(self, _events: int = 0) -> None:
        try:
            while self._waiting:
                del self._waiting[: os.write(self._stdin, self._waiting[:PIECE])]
        except BlockingIOError:
            self._wires.watch(self._stdin, select.EPOLLOUT, self._feed)
            return
        except OSError:
            self._waiting.clear()
            self._eof = True
        self._wires.unwatch(self._stdin)
        if self._eof:
            self._close_stdin()

    def _close_stdin(self) -> None:
        if self._stdin >= 0:
            self._waiting.clear()
            self._wires.unwatch(self._stdin)
            os.close(self._stdin)
            self._stdin = -1


def spawn(order: dict[str, Any], streams: tuple[int, int, int]) -> tuple[int, int]:
    """Start a program in a session of its own, which dies with this process; return its pid and pidfd.

    Raises Refused, OSError.
    """
    environment = {**os.environ, **order["env"]}
    home = environment.get("HOME", "/")
    place = os.path.join(home, order["cwd"] or "")
    reader, writer = os.pipe()
    parent = os.getpid()
    try:
        pid = os.fork()
    except OSError:
        close(reader, writer)
        raise
    if not pid:
        # nothing but an exec leads out of here
        try:
            os.setsid()
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT):
                signal.signal(number, signal.SIG_DFL)
            for target, descriptor in enumerate(streams):
                os.dup2(descriptor, target)
            if os.getppid() == parent:
                os.chdir(place)
                os.execvpe(order["argv"][0], order["argv"], environment)
        except BaseException as error:  # noqa: BLE001 - it is told, and this process ends
            reason = error.strerror if isinstance(error, OSError) else str(error)
            with contextlib.suppress(OSError):
                os.write(writer, f"{reason}".encode()[:500])
        finally:
            os._exit(127)
    os.close(writer)
    said = b""
    while piece := os.read(reader, 512):
        said += piece
    os.close(reader)
    if said:
        os.waitpid(pid, 0)
        raise Refused("cannot_run", f"It cannot be run: {said.decode(errors='replace')}.")
    try:
        return pid, os.pidfd_open(pid)
    except OSError:
        os.killpg(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise


def kill(pid: int, number: int, *, group: bool = False) -> None:
    """Signal a process or a group. Raises Refused."""
    try:
        os.killpg(pid, number) if group else os.kill(pid, number)
    except ProcessLookupError:
        raise Refused("gone", "There is no such process.") from None
    except PermissionError:
        raise Refused("not_permitted", "The process does not take signals from the cell's user.") from None
    except (OSError, OverflowError, ValueError):
        raise Refused("bad_signal", "There is no such signal.") from None


def close(*descriptors: int) -> None:
    """Close descriptors; -1 stands for none."""
    for descriptor in descriptors:
        if descriptor >= 0:
            os.close(descriptor)
