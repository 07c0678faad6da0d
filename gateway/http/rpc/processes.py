"""Methods on what runs in a cell beside the kernel: commands, processes, the system as the cell sees it."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from gateway.http.processes import CellProcessList, ProcessInput, ProcessList, number_of
from gateway.http.rpc.method import Call, Method, Place, kernel_of
from gateway.models.processes import (
    CommandResult,
    CommandRun,
    Process,
    ProcessOutput,
    ProcessStart,
    Snapshot,
)

Signal = Annotated[str | int, Field(description="A signal's name without SIG, or its number.")]


class Run(Place, CommandRun):
    """Parameters of `command.run`."""


class Start(Place, ProcessStart):
    """Parameters of `process.start`."""


class OneProcess(Place):
    """Names a process."""

    process_id: str = Field(max_length=64)


class Read(OneProcess):
    """Parameters of `process.read`."""

    cursor: int = Field(0, ge=0, lt=1 << 60, description="0, or the one that the last answer gave.")
    wait_s: float = Field(0.0, ge=0, le=60, description="Seconds to wait for output.")


class Input(OneProcess, ProcessInput):
    """Parameters of `process.input`."""


class SignalProcess(OneProcess):
    """Parameters of `process.signal`."""

    signal: Signal = "TERM"


class Kill(Place):
    """Parameters of `system.kill`."""

    pid: int = Field(ge=1, lt=1 << 32)
    signal: Signal = "KILL"


class Look(Place):
    """Parameters of `system.snapshot`."""

    packages: bool = Field(False, description="The Python packages of the kernel's environment, too.")


async def run(call: Call, wanted: Run) -> CommandResult:
    """Run a command to its end; where the connection drops, it is killed."""
    return await call.ctx.processes.run(call.principal, await kernel_of(call, wanted), wanted)


async def start(call: Call, wanted: Start) -> Process:
    """Start a process that goes on by itself."""
    return await call.ctx.processes.start(call.principal, await kernel_of(call, wanted), wanted)


async def listing(call: Call, wanted: Place) -> ProcessList:
    """List the processes that were started."""
    found = await call.ctx.processes.listing(call.principal, await kernel_of(call, wanted))
    return ProcessList(list(found))


async def read(call: Call, wanted: Read) -> ProcessOutput:
    """Return output from a cursor on."""
    kernel_id = await kernel_of(call, wanted)
    return await call.ctx.processes.read(
        call.principal, kernel_id, wanted.process_id, cursor=wanted.cursor, wait_s=wanted.wait_s
    )


async def put(call: Call, wanted: Input) -> None:
    """Write to a process's standard input."""
    kernel_id = await kernel_of(call, wanted)
    await call.ctx.processes.write(
        call.principal, kernel_id, wanted.process_id, wanted.content(), eof=wanted.eof
    )


async def signal(call: Call, wanted: SignalProcess) -> None:
    """Signal a process and its children."""
    kernel_id, number = await kernel_of(call, wanted), number_of(wanted.signal)
    await call.ctx.processes.signal(call.principal, kernel_id, wanted.process_id, number)


async def remove(call: Call, wanted: OneProcess) -> None:
    """Kill a process, if it runs, and forget it."""
    await call.ctx.processes.remove(call.principal, await kernel_of(call, wanted), wanted.process_id)


async def tree(call: Call, wanted: Place) -> CellProcessList:
    """List every process of the cell."""
    found = await call.ctx.processes.tree(call.principal, await kernel_of(call, wanted))
    return CellProcessList(list(found))


async def kill(call: Call, wanted: Kill) -> None:
    """Signal any process of the cell."""
    kernel_id, number = await kernel_of(call, wanted), number_of(wanted.signal)
    await call.ctx.processes.kill(call.principal, kernel_id, wanted.pid, number)


async def snapshot(call: Call, wanted: Look) -> Snapshot:
    """Show the system as the cell sees it."""
    kernel_id = await kernel_of(call, wanted)
    return await call.ctx.processes.snapshot(call.principal, kernel_id, packages=wanted.packages)


METHODS: tuple[Method, ...] = (
    Method("command.run", run, Run, CommandResult, "Run a shell command beside the kernel, to its end."),
    Method("process.start", start, Start, Process, "Start a process that goes on by itself."),
    Method("process.list", listing, Place, ProcessList, "List what was started so.", changes=False),
    Method("process.read", read, Read, ProcessOutput, "Read output from a cursor on.", changes=False),
    Method("process.input", put, Input, None, "Write to a process's standard input, or close it."),
    Method("process.signal", signal, SignalProcess, None, "Signal a process and its children."),
    Method("process.remove", remove, OneProcess, None, "Kill a process, if it runs, and forget it."),
    Method("system.tree", tree, Place, CellProcessList, "List every process of the cell.", changes=False),
    Method("system.kill", kill, Kill, None, "Signal any process of the cell."),
    Method(
        "system.snapshot", snapshot, Look, Snapshot, "Show the system as seen from within.", changes=False
    ),
)
