"""One command from its start to its end, and what is kept of its output."""

from __future__ import annotations

import asyncio
import signal
from contextlib import suppress
from typing import TYPE_CHECKING

from gateway.errors import Conflict, GatewayError, KernelDead, NotFound, SandboxUnavailable
from gateway.models.processes import CommandResult
from gateway.protocol.transcript import mark

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.models.processes import CommandRun, Process, ProcessOutput
    from gateway.ports import Clock, KernelHandle, KernelProcesses

# from SIGTERM to SIGKILL, and from that to an answer without an end
GRACE_S, GIVE_UP_S = 1.0, 5.0
# how often a caller's activity is noted while it waits, and a paused kernel is asked again
LOOK_S, PAUSED_S = 5.0, 0.5


class FollowedCommand:
    """One command from its start to its end. `unended` says that its processes are still to be killed."""

    def __init__(
        self,
        handle: KernelHandle,
        request: CommandRun,
        clock: Clock,
        on_output: Callable[[str], None] | None,
        *,
        most_kept: int,
    ) -> None:
        """`most_kept` is what is kept of a process's output: as much may be left to read at its end."""
        self._handle = handle
        self._request = request
        self._clock = clock
        self._on_output = on_output
        self._kept = {"stdout": Kept(request.output_bytes), "stderr": Kept(request.output_bytes)}
        self._most_kept = most_kept
        self._cursor = 0
        self._processes: KernelProcesses | None = None
        self._process: Process | None = None
        self.output_bytes = 0

    @property
    def unended(self) -> bool:
        """Whether there is something to kill and forget."""
        return self._process is not None

    async def result(self) -> CommandResult:
        """Start the command and follow it. Raises GatewayError."""
        begun = self._clock.monotonic()
        processes = self._processes = self._handle.processes()
        given = self._request.stdin
        process = self._process = await processes.start(self._request, stdin=given is not None)
        if given is not None:
            # it may have ended already, without a look at it
            with suppress(Conflict, NotFound):
                await processes.write(process.id, given.encode("utf-8", "replace"), eof=True)
        timed_out = not await self._ended(self._request.timeout_s)
        for number, wait_s in ((signal.SIGTERM, GRACE_S), (signal.SIGKILL, GIVE_UP_S)):
            if self._process.state == "running":
                await self._signal(number)
                await self._ended(wait_s)
        process = self._process
        if process.state == "ended":
            self._process = None
            await processes.remove(process.id)
        status = "timeout" if timed_out else "ok" if process.exit_code == 0 else "error"
        return CommandResult(
            status=status,
            exit_code=process.exit_code,
            stdout=self._kept["stdout"].text(),
            stderr=self._kept["stderr"].text(),
            truncated=any(kept.cut for kept in self._kept.values()),
            duration_s=self._clock.monotonic() - begun,
        )

    async def kill(self) -> None:
        """Kill and forget it, as soon as the kernel is not paused any more."""
        process, processes = self._process, self._processes
        if process is None or processes is None:
            return
        while True:
            try:
                await processes.remove(process.id)
            except Conflict as error:
                if isinstance(error, KernelDead):
                    return
                await asyncio.sleep(PAUSED_S)
            except GatewayError:
                # it is gone, or nobody there does anything any more
                return
            else:
                return

    async def _ended(self, wait_s: float) -> bool:
        """Read on until it has ended; tell whether it has within so many seconds."""
        until = self._clock.monotonic() + wait_s
        processes, process = self._processes, self._process
        assert processes is not None  # noqa: S101 - it was started
        assert process is not None  # noqa: S101
        read_after = 0
        while True:
            left_s = until - self._clock.monotonic()
            output = await processes.read(
                process.id, cursor=self._cursor, wait_s=max(0.0, min(left_s, LOOK_S))
            )
            self._handle.touch()
            self._process = output.process
            self._take(output)
            if output.process.state == "running":
                if left_s <= 0:
                    return False
                continue
            # what came before its end is there; what it has left behind may write on without one
            read_after += sum(len(chunk.text) for chunk in output.chunks)
            if (not output.chunks and not output.lost) or read_after > self._most_kept:
                return True

    def _take(self, output: ProcessOutput) -> None:
        self._cursor = output.cursor
        if output.lost:
            # of which stream it was is not known any more
            self._kept["stdout"].skip(output.lost)
        for chunk in output.chunks:
            data = chunk.text.encode("utf-8", "replace")
            self.output_bytes += len(data)
            self._kept[chunk.stream].add(data)
            if self._on_output:
                self._on_output(chunk.text)

    async def _signal(self, number: int) -> None:
        processes, process = self._processes, self._process
        assert processes is not None  # noqa: S101 - it was started
        assert process is not None  # noqa: S101
        while True:
            try:
                await processes.signal(process.id, number)
            except SandboxUnavailable:
                raise
            except Conflict as error:
                if error.reason != "paused":
                    # it has ended meanwhile
                    return
                await asyncio.sleep(PAUSED_S)
            else:
                return


class Kept:
    """The head and the tail of one stream, `most` bytes of it, with a mark between."""

    def __init__(self, most: int) -> None:
        self._head_most = most // 2
        self._tail_most = most - self._head_most
        self._head, self._tail = bytearray(), bytearray()
        self.cut = 0

    def add(self, data: bytes) -> None:
        """Take more of it."""
        if not self.cut and not self._tail:
            room = self._head_most - len(self._head)
            self._head += data[:room]
            data = data[room:]
        self._tail += data
        over = len(self._tail) - self._tail_most
        if over > 0:
            del self._tail[:over]
            self.cut += over

    def skip(self, size: int) -> None:
        """Note that bytes are missing here."""
        self.cut += size + len(self._tail)
        self._tail.clear()

    def text(self) -> str:
        """Return what there is, and where how much is missing."""
        if not self.cut:
            return (self._head + self._tail).decode("utf-8", "replace")
        head, tail = (part.decode("utf-8", "ignore") for part in (self._head, self._tail))
        return f"{head}\n{mark(self.cut)}\n{tail}"
