"""Commands and processes beside a kernel, over REST."""

from __future__ import annotations

import base64
import re
import signal
from typing import Self

from aiohttp import web
from pydantic import Field, RootModel, model_validator

from gateway.errors import BadRequest
from gateway.http.access import owner
from gateway.http.bodies import read_model
from gateway.http.context import context, principal, reply
from gateway.http.files import flag
from gateway.http.route import Route
from gateway.models import Model, Scope
from gateway.models.processes import (
    CellProcess,
    CommandResult,
    CommandRun,
    Process,
    ProcessOutput,
    ProcessStart,
    Snapshot,
)

MAX_WAIT_S = 60.0
OWNED = owner("kernel_id", Scope.EXECUTE)
SIGNALS = {each.name.removeprefix("SIG"): int(each) for each in signal.Signals}


class ProcessList(RootModel[list[Process]]):
    """Processes that were started beside a kernel, oldest first."""


class CellProcessList(RootModel[list[CellProcess]]):
    """Every process of a cell, by pid."""


class ProcessInput(Model):
    """What a process is to read: text, or any bytes in base64; and whether that is all."""

    text: str | None = Field(None, max_length=1 << 20)
    data: str | None = Field(None, max_length=(4 << 20) // 3)
    eof: bool = False

    @model_validator(mode="after")
    def _one(self) -> Self:
        if self.text is not None and self.data is not None:
            raise ValueError("give text or data, not both")
        return self

    def content(self) -> bytes:
        """Return the bytes. Raises BadRequest."""
        if self.text is not None:
            return self.text.encode("utf-8", "replace")
        try:
            return base64.b64decode(self.data or "", validate=True)
        except ValueError as error:
            # of what is not ASCII it is no binascii.Error
            raise BadRequest("The field data is no base64.", reason="data") from error


class ProcessSignal(Model):
    """A signal: its name without SIG, or its number."""

    signal: str | int = "TERM"


async def run_command(request: web.Request) -> web.Response:
    """Run a command to its end."""
    wanted = await read_model(request, CommandRun)
    result = await context(request).processes.run(principal(request), kernel_of(request), wanted)
    left = context(request).quotas.allowance(principal(request).name, "executions_per_minute")
    return reply(result, allowance=left)


async def list_processes(request: web.Request) -> web.Response:
    """List the processes that were started beside a kernel."""
    found = await context(request).processes.listing(principal(request), kernel_of(request))
    return reply(ProcessList(list(found)))


async def start_process(request: web.Request) -> web.Response:
    """Start a process that goes on by itself."""
    wanted = await read_model(request, ProcessStart)
    kernel_id = kernel_of(request)
    process = await context(request).processes.start(principal(request), kernel_id, wanted)
    return reply(process, status=201, location=f"/api/kernels/{kernel_id}/processes/{process.id}")


async def read_output(request: web.Request) -> web.Response:
    """Return a process's output from a cursor on."""
    output = await context(request).processes.read(
        principal(request),
        kernel_of(request),
        request.match_info["process_id"],
        cursor=cursor_of(request),
        wait_s=wait_of(request),
    )
    return reply(output)


async def write_input(request: web.Request) -> web.Response:
    """Write to a process's standard input."""
    wanted = await read_model(request, ProcessInput)
    await context(request).processes.write(
        principal(request),
        kernel_of(request),
        request.match_info["process_id"],
        wanted.content(),
        eof=wanted.eof,
    )
    return web.Response(status=204)


async def signal_process(request: web.Request) -> web.Response:
    """Signal a process and its children."""
    wanted = await read_model(request, ProcessSignal)
    await context(request).processes.signal(
        principal(request), kernel_of(request), request.match_info["process_id"], number_of(wanted.signal)
    )
    return web.Response(status=204)


async def remove_process(request: web.Request) -> web.Response:
    """Kill a process, if it runs, and forget it."""
    await context(request).processes.remove(
        principal(request), kernel_of(request), request.match_info["process_id"]
    )
    return web.Response(status=204)


async def show_tree(request: web.Request) -> web.Response:
    """List every process of a cell."""
    found = await context(request).processes.tree(principal(request), kernel_of(request))
    return reply(CellProcessList(list(found)))


async def kill_in_tree(request: web.Request) -> web.Response:
    """Signal any process of a cell."""
    given = request.match_info["pid"]
    if not re.fullmatch(r"[1-9][0-9]{0,9}", given):
        raise BadRequest("A pid is a positive number.", reason="pid")
    number = number_of(request.query.get("signal", "KILL"))
    await context(request).processes.kill(principal(request), kernel_of(request), int(given), number)
    return web.Response(status=204)


async def show_system(request: web.Request) -> web.Response:
    """Show the system as the cell sees it."""
    packages = "packages" in request.query and flag(request, "packages")
    shown = await context(request).processes.snapshot(
        principal(request), kernel_of(request), packages=packages
    )
    return reply(shown)


def kernel_of(request: web.Request) -> str:
    """Return the kernel that a path names."""
    return request.match_info["kernel_id"]


def number_of(given: str | int) -> int:
    """Return a signal's number. Raises BadRequest."""
    if isinstance(given, str):
        name = given.upper().removeprefix("SIG")
        given = int(name) if re.fullmatch(r"[0-9]{1,3}", name) else SIGNALS.get(name, 0)
    if not 0 < given < signal.NSIG:
        raise BadRequest("There is no such signal.", reason="signal")
    return given


def cursor_of(request: web.Request) -> int:
    """Return the position to read from. Raises BadRequest."""
    given = request.query.get("cursor", "0")
    if not re.fullmatch(r"[0-9]{1,18}", given):
        raise BadRequest("The query parameter cursor is a number.", reason="cursor")
    return int(given)


def wait_of(request: web.Request) -> float:
    """Return how many seconds the caller would wait. Raises BadRequest."""
    given = request.query.get("wait_s", "0")
    if not re.fullmatch(r"[0-9]{1,2}(\.[0-9]{1,6})?", given) or float(given) > MAX_WAIT_S:
        raise BadRequest(f"The query parameter wait_s is 0 to {MAX_WAIT_S:g}.", reason="wait_s")
    return float(given)


PROCESS_ROUTES: tuple[Route, ...] = (
    Route(
        "POST",
        "/api/kernels/{kernel_id}/commands",
        run_command,
        OWNED,
        "Run a shell command in a kernel's cell, beside the kernel, and wait for its end.",
        {200: CommandResult},
        "processes",
        body=CommandRun,
    ),
    Route(
        "GET",
        "/api/kernels/{kernel_id}/processes",
        list_processes,
        OWNED,
        "List the processes that were started beside a kernel.",
        {200: ProcessList},
        "processes",
    ),
    Route(
        "POST",
        "/api/kernels/{kernel_id}/processes",
        start_process,
        OWNED,
        "Start a process beside a kernel, which goes on by itself.",
        {201: Process},
        "processes",
        body=ProcessStart,
    ),
    Route(
        "GET",
        "/api/kernels/{kernel_id}/processes/{process_id}/output",
        read_output,
        OWNED,
        "Read a process's output from a cursor on, and how it is.",
        {200: ProcessOutput},
        "processes",
        query={
            "cursor": "The position to read from: 0, or the one that the last answer gave.",
            "wait_s": "Seconds to wait for output, 60 at most.",
        },
    ),
    Route(
        "POST",
        "/api/kernels/{kernel_id}/processes/{process_id}/input",
        write_input,
        OWNED,
        "Write to a process's standard input, or close it.",
        {204: None},
        "processes",
        body=ProcessInput,
    ),
    Route(
        "POST",
        "/api/kernels/{kernel_id}/processes/{process_id}/signal",
        signal_process,
        OWNED,
        "Signal a process and its children.",
        {204: None},
        "processes",
        body=ProcessSignal,
    ),
    Route(
        "DELETE",
        "/api/kernels/{kernel_id}/processes/{process_id}",
        remove_process,
        OWNED,
        "Kill a process and its children, if it runs, and forget it.",
        {204: None},
        "processes",
    ),
    Route(
        "GET",
        "/api/kernels/{kernel_id}/tree",
        show_tree,
        OWNED,
        "List every process of a kernel's cell.",
        {200: CellProcessList},
        "processes",
    ),
    Route(
        "DELETE",
        "/api/kernels/{kernel_id}/tree/{pid}",
        kill_in_tree,
        OWNED,
        "Signal any process of a kernel's cell.",
        {204: None},
        "processes",
        query={"signal": "The signal's name without SIG, or its number; KILL when left out."},
    ),
    Route(
        "GET",
        "/api/kernels/{kernel_id}/system",
        show_system,
        OWNED,
        "Show the system as a kernel's cell sees it.",
        {200: Snapshot},
        "processes",
        query={"packages": "With true: the Python packages of the kernel's environment, too."},
    ),
)
