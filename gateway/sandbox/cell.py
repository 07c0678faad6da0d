"""One live cell: its processes, what it leaves on the way out, and how it is ended as a whole."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import shutil
import signal
from dataclasses import dataclass, field
from pathlib import Path

from gateway.errors import SandboxUnavailable
from gateway.models import Limits, Usage
from gateway.sandbox import confinement, processes
from gateway.sandbox.cgroup import Cgroup
from gateway.sandbox.home import Home
from gateway.sandbox.spawn import Spawned
from gateway.sandbox.users import CellUser, UserPool
from gateway.sandbox.wire import Connection, Ending
from gateway.sandbox.workspaces import Lease

STDERR_KEPT = 8 << 10
PIDFD_SIGNAL_PROCESS_GROUP = 1 << 2
END_TIMEOUT_S = 5.0


class Tail:
    """Drains a pipe that hostile code may write to, and keeps its first bytes."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._kept = bytearray()
        os.set_blocking(descriptor, False)
        asyncio.get_running_loop().add_reader(descriptor, self._drain)

    def _drain(self) -> None:
        try:
            data = os.read(self._descriptor, 1 << 16)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            asyncio.get_running_loop().remove_reader(self._descriptor)
            return
        self._kept += data[: STDERR_KEPT - len(self._kept)]

    def text(self) -> str:
        """Return what was kept, printable."""
        text = self._kept.decode("utf-8", "replace").strip()
        return "".join(char if char.isprintable() or char == "\n" else "?" for char in text)

    def close(self) -> str:
        """Read what is left, let go of the pipe, and return the text."""
        self._drain()
        asyncio.get_running_loop().remove_reader(self._descriptor)
        os.close(self._descriptor)
        return self.text()


def settle(waiting: asyncio.Future[None]) -> None:
    """Wake who waits for a descriptor, once."""
    if not waiting.done():
        waiting.set_result(None)


@dataclass(slots=True)
class Cell:
    """A started cell. `kernel_fd` and `init_fd` are pidfds, set like `files` once the cell has been proved.

    `attendant_fd` is this end of the attendant's socket, if it has one: nothing is ever read from it here.
    The cell dies when `leash` is closed, and so with this process. `born` is when its kernel's first cell was
    started, in monotonic seconds. A `pooled` cell's kernel is nobody's yet.
    """

    id: str
    kernel_id: str
    profile: str
    user: CellUser
    directory: Path
    home: Path
    connection: Connection
    process: Spawned
    stderr: Tail
    born: float
    leash: int
    limits: Limits
    cgroup: Cgroup | None = None
    pool: UserPool | None = None
    landlock: int = 0
    kernel_pid: int = 0
    kernel_fd: int = -1
    init_fd: int = -1
    attendant_fd: int = -1
    attended: bool = False
    sealed: bool = False
    tied: bool = False
    pooled: bool = False
    files: Home | None = None
    workspace: Lease | None = None
    _ending: asyncio.Task[Ending] | None = field(default=None, repr=False)

    def interrupt(self) -> None:
        """Send SIGINT to the kernel and its group's children. Raises ProcessLookupError when it is gone."""
        try:
            signal.pidfd_send_signal(self.kernel_fd, signal.SIGINT, None, PIDFD_SIGNAL_PROCESS_GROUP)
        except OSError as error:
            if isinstance(error, ProcessLookupError):
                raise
            # before Linux 6.9; the leader is alive, so its group's number cannot be somebody else's
            signal.pidfd_send_signal(self.kernel_fd, 0)
            os.killpg(self.kernel_pid, signal.SIGINT)

    def pause(self) -> None:
        """Freeze every process: by the cgroup, or where there is none by SIGSTOP to each."""
        if self.cgroup:
            self.cgroup.freeze()
        else:
            self._signal_all(signal.SIGSTOP)

    def resume(self) -> None:
        """Let the processes go on."""
        if self.cgroup:
            self.cgroup.thaw()
        else:
            self._signal_all(signal.SIGCONT)

    def usage(self) -> Usage:
        """Return what the cell uses; memory's peak and throttling are known to cgroups alone."""
        home = os.statvfs(f"/proc/{self.kernel_pid}/root{self.user.home}") if self.pool else None
        home_bytes = (home.f_blocks - home.f_bfree) * home.f_frsize if home else None
        home_inodes = home.f_files - home.f_ffree if home else None
        if self.cgroup:
            used = self.cgroup.usage()
            return Usage(
                memory_bytes=used.memory_bytes,
                memory_peak_bytes=used.memory_peak_bytes,
                cpu_s=used.cpu_s,
                throttled_s=self.cgroup.cpu_throttled(),
                pids=used.pids,
                home_bytes=home_bytes,
                home_inodes=home_inodes,
            )
        memory_bytes, cpu_s, pids = processes.total(self.tree())
        return Usage(memory_bytes=memory_bytes, cpu_s=cpu_s, pids=pids)

    def tree(self) -> list[int]:
        """List every process of the cell: all descendants of its namespace's init, and that itself."""
        return processes.descendants(int(confinement.status(self.kernel_pid)["PPid"]))

    def _signal_all(self, number: signal.Signals) -> None:
        # twice, since what was not stopped yet may have forked between
        for _ in range(2):
            for pid in self.tree():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)

    def seal(self) -> None:
        """Take the ipc directory from the cell: no connection file, and no entry that it could swap."""
        directory = os.open(self.ipc, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            if self.pool is not None:
                os.fchown(directory, 0, 0)
                os.fchmod(directory, 0o711)
            # sealed without a word from its kernel, a tied cell's may be about to read it; and the key is in
            # the connection file of whoever it is tied to as well
            if not self.tied:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink("c.json", dir_fd=directory)
        finally:
            os.close(directory)
        self.sealed = True

    @property
    def ipc(self) -> Path:
        """The directory of the kernel's sockets."""
        return self.directory / "i"

    async def end(self) -> Ending:
        """Kill the whole tree, clean up after it, and say how the kernel had ended. Safe to call twice."""
        if self._ending is None:
            self._ending = asyncio.get_running_loop().create_task(self._end())
        return await asyncio.shield(self._ending)

    async def _end(self) -> Ending:
        code = await self._own_exit()
        self._kill()
        await self._reap()
        if self.cgroup:
            # a dead init has taken all with it; this is for what was never in its namespace
            self.cgroup.kill()
        oom = self.cgroup.oom_kills() if self.cgroup else 0
        self._clean()
        return Ending(exit_code=code, oom=oom > 0, stderr=self.stderr.close())

    async def _own_exit(self) -> int | None:
        """Return firejail's exit code where the kernel ended by itself; None where it still runs."""
        if self.kernel_fd < 0 or not pidfd_exited(self.kernel_fd):
            return self.process.poll()
        # firejail passes the kernel's code on about 100 ms after its death
        for _ in range(30):
            if (code := self.process.poll()) is not None:
                return code
            await asyncio.sleep(0.01)
        return None

    def _kill(self) -> None:
        if self.cgroup:
            # what is frozen does not die (cgroup v1)
            with contextlib.suppress(SandboxUnavailable):
                self.cgroup.thaw()
        if self.init_fd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.init_fd, signal.SIGKILL)
        elif self.process.poll() is None:
            # nothing was proved yet: it leads its session, and firejail's children die with it (PDEATHSIG)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            # it may not have come to that
            self.process.kill()

    async def _reap(self) -> None:
        deadline = asyncio.get_running_loop().time() + END_TIMEOUT_S
        while self.process.poll() is None:
            if asyncio.get_running_loop().time() > deadline:
                self.process.kill()
            await asyncio.sleep(0.002)

    def _clean(self) -> None:
        for descriptor in (self.kernel_fd, self.init_fd, self.attendant_fd, self.leash):
            if descriptor >= 0:
                os.close(descriptor)
        if self.files:
            self.files.close()
        if self.workspace:
            self.workspace.release()
        if self.cgroup:
            self.cgroup.remove()
        shutil.rmtree(self.directory, ignore_errors=True)
        if self.pool:
            self.pool.release(self.user)
        elif not self.workspace:
            shutil.rmtree(self.home, ignore_errors=True)


def pidfd_exited(pidfd: int) -> bool:
    """Tell whether the process behind a pidfd has exited."""
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    return bool(poller.poll(0))
