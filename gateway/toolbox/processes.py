"""Tools on the processes of a session's cell."""

from __future__ import annotations

import signal
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from gateway.errors import BadRequest
from gateway.models import Frozen, Model, Scope
from gateway.models.processes import CellProcess, Process, ProcessOutput, ProcessStart, Snapshot
from gateway.toolbox.handles import SessionId
from gateway.toolbox.sessions import InSession
from gateway.toolbox.tool import ENDS, RUNS, SEES, Call, Tool

if TYPE_CHECKING:
    from gateway.services.processes import ProcessService
    from gateway.toolbox.handles import Handles

SCOPES = frozenset({Scope.EXECUTE, Scope.KERNELS})
SIGNALS = {"TERM": signal.SIGTERM, "INT": signal.SIGINT, "KILL": signal.SIGKILL, "HUP": signal.SIGHUP}
SignalName = Literal["TERM", "INT", "KILL", "HUP"]
ProcessId = Field(min_length=1, max_length=64, description="The process, as start_process returned it.")


class StartProcess(Frozen):
    """Which process to start, and where."""

    session_id: SessionId
    command: str = Field(min_length=1, max_length=64 << 10, description="A line for bash.")
    cwd: str | None = Field(None, max_length=4096, description="Where to run it.")


class SendInput(Frozen):
    """What a process shall read."""

    session_id: SessionId
    process_id: str = ProcessId
    text: str = Field("", max_length=256 << 10, description="Text, with its line ends.")
    eof: bool = Field(False, description="Close its standard input then.")


class ReadOutput(Frozen):
    """Which output to read."""

    session_id: SessionId
    process_id: str = ProcessId
    cursor: int = Field(0, ge=0, description="Where to go on: from an earlier answer; 0 is the start.")
    wait_s: float = Field(0.0, ge=0, le=30, description="Seconds to wait for some.")


class StopProcess(Frozen):
    """Which process to stop, and how."""

    session_id: SessionId
    process_id: str = ProcessId
    signal: SignalName = Field("TERM", description="KILL ends it for certain.")


class KillProcess(Frozen):
    """Which process of the sandbox to signal, by its pid there."""

    session_id: SessionId
    pid: int = Field(ge=2, le=1 << 22, description="From list_processes.")
    signal: SignalName = "KILL"


class ProcessList(Model):
    """Those that were started by start_process, and every process of the sandbox."""

    started: list[Process]
    processes: list[CellProcess]


class Packages(Model):
    """Python packages of the kernel's environment: versions by name."""

    packages: dict[str, str]


class Signalled(Model):
    """A signal that was sent."""

    session_id: str
    signal: str


class ProcessTools:
    """Processes for agents."""

    def __init__(self, processes: ProcessService, handles: Handles) -> None:
        self._processes = processes
        self._handles = handles

    async def start(self, call: Call, given: StartProcess) -> Process:
        """Start a process."""
        session = await self._handles.find(call.principal, given.session_id)
        request = ProcessStart(command=given.command, cwd=given.cwd)
        return await self._processes.start(call.principal, session.kernel_id, request)

    async def send(self, call: Call, given: SendInput) -> Process:
        """Write to a process."""
        if not given.text and not given.eof:
            raise BadRequest("Give text, or eof.", reason="text")
        session = await self._handles.find(call.principal, given.session_id)
        kernel_id = session.kernel_id
        await self._processes.write(
            call.principal, kernel_id, given.process_id, given.text.encode(), eof=given.eof
        )
        read = await self._processes.read(call.principal, kernel_id, given.process_id, cursor=0, wait_s=0)
        return read.process

    async def read(self, call: Call, given: ReadOutput) -> ProcessOutput:
        """Read what a process has said."""
        session = await self._handles.find(call.principal, given.session_id)
        return await self._processes.read(
            call.principal,
            session.kernel_id,
            given.process_id,
            cursor=given.cursor,
            wait_s=given.wait_s,
        )

    async def stop(self, call: Call, given: StopProcess) -> Signalled:
        """Signal a process and its children."""
        session = await self._handles.find(call.principal, given.session_id)
        await self._processes.signal(
            call.principal, session.kernel_id, given.process_id, SIGNALS[given.signal]
        )
        return Signalled(session_id=given.session_id, signal=given.signal)

    async def list(self, call: Call, given: InSession) -> ProcessList:
        """List processes."""
        session = await self._handles.find(call.principal, given.session_id)
        return ProcessList(
            started=list(await self._processes.listing(call.principal, session.kernel_id)),
            processes=list(await self._processes.tree(call.principal, session.kernel_id)),
        )

    async def kill(self, call: Call, given: KillProcess) -> Signalled:
        """Signal any process of the sandbox."""
        session = await self._handles.find(call.principal, given.session_id)
        await self._processes.kill(call.principal, session.kernel_id, given.pid, SIGNALS[given.signal])
        return Signalled(session_id=given.session_id, signal=given.signal)

    async def snapshot(self, call: Call, given: InSession) -> Snapshot:
        """Show the system as it is in the sandbox."""
        session = await self._handles.find(call.principal, given.session_id)
        return await self._processes.snapshot(call.principal, session.kernel_id)

    async def packages(self, call: Call, given: InSession) -> Packages:
        """List the Python packages."""
        session = await self._handles.find(call.principal, given.session_id)
        shown = await self._processes.snapshot(call.principal, session.kernel_id, packages=True)
        return Packages(packages=shown.packages)

    def extended(self) -> tuple[Tool, ...]:
        """Return the tools that are offered where somebody asks."""
        tools = (
            Tool(
                "start_process",
                "Start a process",
                "Start a line of bash that goes on by itself; talk to it with send_input and read_output.",
                StartProcess,
                Process,
                self.start,
                SCOPES,
                RUNS,
            ),
            Tool(
                "send_input",
                "Write to a process",
                "Write to the standard input of a process that start_process started.",
                SendInput,
                Process,
                self.send,
                SCOPES,
                RUNS,
            ),
            Tool(
                "read_output",
                "Read from a process",
                "Return what a started process has written since cursor, and whether it still runs.",
                ReadOutput,
                ProcessOutput,
                self.read,
                SCOPES,
                SEES,
            ),
            Tool(
                "stop_process",
                "Stop a process",
                "Signal a started process and its children.",
                StopProcess,
                Signalled,
                self.stop,
                SCOPES,
                ENDS,
            ),
            Tool(
                "list_processes",
                "List processes",
                "List the processes that were started, and every process of the sandbox.",
                InSession,
                ProcessList,
                self.list,
                SCOPES,
                SEES,
            ),
            Tool(
                "kill_process",
                "Kill a process",
                "Signal any process of the sandbox, by its pid there.",
                KillProcess,
                Signalled,
                self.kill,
                SCOPES,
                ENDS,
            ),
            Tool(
                "system_snapshot",
                "Look at the system",
                "Show the sandbox from inside: processors, memory, disks, processes.",
                InSession,
                Snapshot,
                self.snapshot,
                SCOPES,
                SEES,
            ),
            Tool(
                "list_packages",
                "List packages",
                "List the Python packages of the kernel's environment with their versions.",
                InSession,
                Packages,
                self.packages,
                SCOPES,
                SEES,
            ),
        )
        return tuple(replace(tool, extended=True) for tool in tools)
