"""The processes beside one kernel: what was started there, what it wrote, and what else runs in the cell."""

from __future__ import annotations

import asyncio
import secrets
import signal
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime

import orjson

from gateway.errors import (
    BadRequest,
    Conflict,
    GatewayError,
    KernelDead,
    LimitReached,
    NotFound,
    SandboxUnavailable,
)
from gateway.kernels.attendant import ANSWER_S, Attendant, Broken, Early
from gateway.kernels.ring import OutputRing
from gateway.kernels.said import Done, Known, Listing, Started, Tree, View
from gateway.kernels.toolcalls import Desks, ToolCalls
from gateway.kernels.tracked import Note, Tracked, shown
from gateway.models import Limits, timestamp
from gateway.models.processes import (
    CellProcess,
    Command,
    Process,
    ProcessOutput,
    Snapshot,
    Stream,
)
from gateway.ports import Clock
from gateway.sandbox.link import WardenLink
from gateway.settings import ProcessesSettings

# what one read brings at most
READ_BYTES = 256 << 10
MAX_PID = 1 << 22
STREAMS: dict[int, Stream] = {1: "stdout", 2: "stderr"}


class CellProcesses:
    """Implements `ports.KernelProcesses` for one cell; owns the conversation with its attendant.

    That is begun when it is needed. `tools` has the calls of the cell's code.
    """

    def __init__(
        self,
        link: WardenLink,
        cell: str,
        limits: Limits,
        *,
        settings: ProcessesSettings,
        clock: Clock,
        desks: Desks,
        answer_s: float = ANSWER_S,
    ) -> None:
        self.tools = ToolCalls(desks)
        self.paused = False
        self._link = link
        self._cell = cell
        self._limits = limits
        self._settings = settings
        self._clock = clock
        self._answer_s = answer_s
        self._attendant: Attendant | None = None
        self._beginning: asyncio.Task[GatewayError | None] | None = None
        self._greeting: Attendant | None = None
        self._closed = False
        self._number = 0
        self._known: dict[int, Tracked] = {}

    async def open(self) -> Attendant:
        """Return the conversation with the attendant, begun if need be.

        Raises KernelDead, Conflict (paused), SandboxUnavailable.
        """
        self._check_open()
        if self.paused:
            raise Conflict("The kernel is paused: resume it first.", reason="paused")
        if self._attendant is None:
            # all who come meanwhile wait for the same, or one after the other would wait in vain
            if self._beginning is None or self._beginning.done():
                self._beginning = asyncio.get_running_loop().create_task(self._begin())
            if failed := await asyncio.shield(self._beginning):
                raise type(failed)(failed.message, reason=failed.reason)
            self._check_open()
        attendant = self._attendant
        if attendant is None:
            raise KernelDead("The kernel's cell is gone.")
        if failure := attendant.failure:
            raise failure
        return attendant

    @property
    def busy(self) -> bool:
        """Whether a process that was started runs."""
        return any(each.ended_at is None for each in self._known.values())

    def rest(self) -> None:
        """End the conversation, which the next one who needs it begins again."""
        if self._attendant and not self._attendant.failure:
            self._attendant.close()
            self._attendant = None

    def close(self) -> None:
        """Let go of everything: the cell is not this side's any more. Closing twice is harmless."""
        self._closed = True
        self.tools.close()
        for attendant in (self._attendant, self._greeting):
            if attendant:
                # which also ends a beginning that is under way
                attendant.close()
        self._attendant = None
        self._end_all()

    # -- ports.KernelProcesses ----------------------------------------------------------------------------

    async def start(self, command: Command, *, stdin: bool) -> Process:
        """Start a process; see `ports.KernelProcesses.start`."""
        attendant = await self.open()
        running = sum(each.ended_at is None for each in self._known.values())
        if running >= self._settings.max_running:
            raise LimitReached(
                f"{running} processes run beside this kernel, as many as may (processes.max_running).",
                reason="processes",
                retry_after_s=1,
            )
        argv = command.argv or ("/bin/bash", "-c", command.command or "")
        note = Note(id=secrets.token_hex(6), argv=shown(argv), started_at=timestamp(self._clock.now()))
        self._number += 1
        tracked = Tracked(self._number, note, 0, OutputRing(self._settings.output_bytes))
        order = {"argv": argv, "cwd": command.cwd, "env": command.env, "stdin": stdin}
        body = orjson.dumps({**order, "note": note.model_dump_json()})
        # its output may come in one batch with the answer
        self._known[tracked.number] = tracked
        try:
            tracked.pid = (await attendant.learn(Started, {"op": "start", "p": tracked.number}, body)).pid
        except BaseException as error:
            self._known.pop(tracked.number, None)
            if not isinstance(error, BadRequest | LimitReached):
                # nobody waits for it any more, whether or not it comes to be
                self._discard(attendant, tracked.number)
            raise
        return tracked.model()

    async def listing(self) -> Sequence[Process]:
        """Return the processes that were started, oldest first."""
        await self._met()
        return [each.model() for each in self._known.values() if each.pid]

    async def read(self, process_id: str, *, cursor: int, wait_s: float) -> ProcessOutput:
        """Return output from a cursor on; see `ports.KernelProcesses.read`."""
        await self._met()
        tracked = self._find(process_id)
        loop = asyncio.get_running_loop()
        until = loop.time() + wait_s
        while True:
            news = tracked.news
            chunks, after, lost = tracked.ring.read(cursor, READ_BYTES)
            if chunks or lost or tracked.ended_at or loop.time() >= until:
                break
            with suppress(TimeoutError):
                async with asyncio.timeout_at(until):
                    await news.wait()
            self._check_open()
        if not chunks and not lost and tracked.failed and (failure := self._failure()):
            raise failure
        return ProcessOutput(chunks=chunks, cursor=after, lost=lost, process=tracked.model())

    async def write(self, process_id: str, data: bytes, *, eof: bool = False) -> None:
        """Write to its standard input; see `ports.KernelProcesses.write`."""
        attendant = await self.open()
        tracked = self._running(process_id)
        await attendant.learn(Done, {"op": "input", "p": tracked.number, "eof": eof}, data)

    async def signal(self, process_id: str, number: int) -> None:
        """Signal the process and its children; see `ports.KernelProcesses.signal`."""
        attendant = await self.open()
        tracked = self._running(process_id)
        head = {"op": "signal", "p": tracked.number, "number": checked(number)}
        await attendant.learn(Done, head)

    async def remove(self, process_id: str) -> None:
        """Kill the process, if it runs, and forget it."""
        await self._met()
        tracked = self._find(process_id)
        if tracked.ended_at is None:
            attendant = await self.open()
            with suppress(Conflict, NotFound):
                head = {"op": "signal", "p": tracked.number, "number": signal.SIGKILL}
                await attendant.learn(Done, head)
        self._forget(tracked)

    async def tree(self) -> Sequence[CellProcess]:
        """Return every process of the cell."""
        attendant = await self.open()
        return (await attendant.learn(Tree, {"op": "tree"})).processes

    async def kill(self, pid: int, number: int) -> None:
        """Signal any process of the cell; see `ports.KernelProcesses.kill`."""
        if not 0 < pid <= MAX_PID:
            # 0 and below would be whole groups
            raise NotFound(f"There is no process {pid} in the cell.")
        attendant = await self.open()
        await attendant.learn(Done, {"op": "kill", "pid": pid, "number": checked(number)})

    async def snapshot(self, *, packages: bool = False) -> Snapshot:
        """Return the system as the cell sees it."""
        attendant = await self.open()
        view = await attendant.learn(View, {"op": "snapshot", "packages": packages})
        limits = self._limits
        return Snapshot(**dict(view), cpus=limits.cpus, memory_bytes=limits.memory_bytes)

    # -- attendant.Audience -------------------------------------------------------------------------------

    def greeted(self, known: bytes, early: list[Early]) -> None:
        """Take over what an earlier conversation has started. Raises Broken."""
        try:
            for each in Listing.model_validate_json(known).processes:
                self._take_over(each, [piece for piece in early if piece[0] == each.p])
        except ValueError:
            # which a ValidationError is, too
            raise Broken from None

    def output(self, number: int, stream: int, at: int, data: bytes) -> None:
        """Keep output. Raises Broken."""
        if tracked := self._heard(number):
            try:
                tracked.ring.add(STREAMS[stream], at, data)
            except ValueError:
                raise Broken from None
            tracked.tell()

    def exited(self, number: int, code: int) -> None:
        """Note a process's end. Raises Broken."""
        if (tracked := self._heard(number)) and tracked.ended_at is None:
            tracked.exit_code = code
            self._end(tracked)
            ended = [each for each in self._known.values() if each.ended_at]
            for each in ended[: -self._settings.kept]:
                self._forget(each)

    def called(self, number: int, request: bytes) -> None:
        """Take a call of a tool. Raises Broken."""
        self.tools.called(number, request)

    def hung_up(self, number: int) -> None:
        """Take back a call."""
        self.tools.hung_up(number)

    def left(self) -> None:
        """Note that nothing more can be known of what runs."""
        self.tools.close()
        self._end_all()

    # -- small things -------------------------------------------------------------------------------------

    async def _begin(self) -> GatewayError | None:
        """Begin the conversation, or return what stands against it."""
        try:
            descriptor = await self._link.attend(self._cell)
        except NotFound as error:
            if error.reason == "no_attendant":
                text = "The kernel's sandbox profile has no commands and tools."
                return SandboxUnavailable(text, reason="attendant_off")
            return KernelDead("The kernel's cell is gone.")
        except GatewayError as error:
            return error
        attendant = self._greeting = Attendant(descriptor, self, answer_s=self._answer_s)
        try:
            if self._closed:
                return KernelDead("The kernel's cell is gone.")
            await attendant.greet()
        except SandboxUnavailable as error:
            if attendant.failure and not self._closed:
                # that is how it stays
                self._attendant = attendant
            return error
        else:
            self._attendant = attendant
            self.tools.serve(attendant)
            return None
        finally:
            self._greeting = None
            if self._attendant is not attendant:
                attendant.close()

    def _take_over(self, known: Known, early: list[Early]) -> None:
        """Go on with a process that an earlier conversation has started. Raises ValueError."""
        self._number = max(self._number, known.p)
        tracked = self._known.get(known.p)
        if tracked is None:
            note = Note.model_validate_json(known.note)
            tracked = Tracked(known.p, note, known.pid, OutputRing(self._settings.output_bytes))
            self._known[known.p] = tracked
        for _, stream, at, data in early:
            tracked.ring.add(STREAMS[stream], at, data)
        tracked.ring.skip(known.sent)
        if known.code is not None and tracked.ended_at is None:
            tracked.exit_code = known.code
            tracked.ring.finish()
            tracked.ended_at = timestamp(datetime.fromtimestamp(known.ended_at, UTC))
            tracked.tell()

    async def _met(self) -> None:
        """Have talked to the attendant at least once, so that what it knows is known."""
        self._check_open()
        if self._attendant is None:
            await self.open()

    def _find(self, process_id: str) -> Tracked:
        for each in self._known.values():
            if each.note.id == process_id and each.pid:
                return each
        raise NotFound(f"Process does not exist: {process_id[:64]}")

    def _running(self, process_id: str) -> Tracked:
        tracked = self._find(process_id)
        if tracked.ended_at:
            raise Conflict("The process has ended.", reason="ended")
        return tracked

    def _heard(self, number: int) -> Tracked | None:
        """Return the process that news are about; None where it is forgotten. Raises Broken."""
        if not 0 < number <= self._number:
            raise Broken
        return self._known.get(number)

    def _end(self, tracked: Tracked) -> None:
        tracked.ring.finish()
        tracked.ended_at = timestamp(self._clock.now())
        tracked.tell()

    def _end_all(self) -> None:
        for each in self._known.values():
            if each.ended_at is None:
                each.failed = True
                self._end(each)

    def _forget(self, tracked: Tracked) -> None:
        self._known.pop(tracked.number, None)
        if self._attendant:
            with suppress(SandboxUnavailable):
                self._attendant.tell({"op": "forget", "p": tracked.number})

    def _discard(self, attendant: Attendant, number: int) -> None:
        with suppress(SandboxUnavailable):
            attendant.tell({"op": "signal", "p": number, "number": signal.SIGKILL})
            attendant.tell({"op": "forget", "p": number})

    def _failure(self) -> GatewayError | None:
        return self._attendant.failure if self._attendant else None

    def _check_open(self) -> None:
        if self._closed:
            raise KernelDead("The kernel's cell is gone.")


def checked(number: int) -> int:
    """Return the number of a signal. Raises BadRequest for what is none."""
    if not 0 < number < signal.NSIG:
        raise BadRequest(f"There is no signal {number}.", reason="signal")
    return number
