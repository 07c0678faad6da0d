"""process.Process of E2B's in-sandbox service, for the cell of a sandbox's first kernel."""

from __future__ import annotations

import base64
import signal
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, Any, Literal

import orjson
from aiohttp import web
from pydantic import Field, ValidationError

from gateway.errors import BadRequest, GatewayError, NotOffered
from gateway.http.bodies import read_model
from gateway.http.context import context, principal
from gateway.http.e2b.code import named
from gateway.http.e2b.failures import described
from gateway.http.e2b.files import first_kernel
from gateway.http.e2b.framing import END, deadline_s, ending, envelope, event, message, messages
from gateway.http.e2b.paths import directory
from gateway.http.e2b.views import Body
from gateway.models import Scope
from gateway.models.processes import ProcessStart
from gateway.models.sandboxes import Env

if TYPE_CHECKING:
    from gateway.models.processes import Process

KEEPALIVE_S, LEAST_KEEPALIVE_S = 30.0, 1.0
SIGNALS = {"SIGNAL_SIGTERM": signal.SIGTERM, "SIGNAL_SIGKILL": signal.SIGKILL}
# Of a stream of input: the SDKs say something every 50 s.
INPUT_IDLE_S = 120.0


class Config(Body):
    """What to run."""

    cmd: str = Field(max_length=64 << 10)
    args: list[str] = Field(default_factory=list, max_length=255)
    envs: Env = Field(default_factory=dict)
    cwd: str | None = Field(None, max_length=4096)


class Start(Body):
    """The request of Start."""

    process: Config
    pty: Any = None
    stdin: bool = True


class Selector(Body):
    """Which process: by its pid."""

    pid: int | None = Field(None, ge=1)
    tag: str | None = None


class OnProcess(Body):
    """A request about one process."""

    process: Selector


class Input(Body):
    """Bytes for a process, in base64."""

    stdin: str | None = Field(None, max_length=16 << 20)
    pty: str | None = None

    def data(self) -> bytes:
        """Return the bytes. Raises BadRequest, NotOffered (terminals)."""
        if self.stdin is None:
            raise NotOffered("Terminals are not offered here.", reason="pty")
        try:
            return base64.b64decode(self.stdin, validate=True)
        except ValueError as error:
            raise BadRequest("The input is not base64.", reason="input") from error


class SendInput(OnProcess):
    """The request of SendInput."""

    input: Input


class SendSignal(OnProcess):
    """The request of SendSignal."""

    signal: Literal["SIGNAL_SIGTERM", "SIGNAL_SIGKILL"]


class InputData(Body):
    """Input in a stream of it."""

    input: Input


class StreamInput(Body):
    """One message of StreamInput: the first names the process, the others bring input or say nothing."""

    start: OnProcess | None = None
    data: InputData | None = None


async def start_process(request: web.Request) -> web.StreamResponse:
    """Start a process and follow it. It goes on when the client leaves, and is killed at its deadline."""
    wanted = await message(request, Start)
    if wanted.pty:
        raise NotOffered("Terminals are not offered here.", reason="pty")
    ctx, sandbox, config = context(request), named(request), wanted.process
    try:
        order = ProcessStart(
            argv=(config.cmd, *config.args),
            cwd=directory(config.cwd) or None,
            env={**sandbox.record.env, **config.envs},
            stdin=wanted.stdin,
        )
    except ValidationError as error:
        raise BadRequest(f"The process cannot be started: {error.errors()[0]['msg']}.") from None
    kernel_id, within_s = await first_kernel(request, Scope.EXECUTE), deadline_s(request)
    process = await ctx.e2b.commands.start(principal(request), kernel_id, order, within_s=within_s)
    return await _followed(request, kernel_id, process, within_s)


async def connect_process(request: web.Request) -> web.StreamResponse:
    """Follow a process that runs, from what is kept of its output on."""
    wanted = await message(request, OnProcess)
    kernel_id = await first_kernel(request, Scope.EXECUTE)
    process = await _found(request, kernel_id, wanted.process)
    return await _followed(request, kernel_id, process, deadline_s(request))


async def list_sandbox_processes(request: web.Request) -> web.Response:
    """List the processes that were started so, and run."""
    kernel_id = await first_kernel(request, Scope.EXECUTE)
    running = await context(request).e2b.commands.running(principal(request), kernel_id)
    return web.json_response(
        {
            "processes": [
                {"config": {"cmd": process.argv[0], "args": list(process.argv[1:])}, "pid": process.pid}
                for process in running
            ]
        }
    )


async def send_process_input(request: web.Request) -> web.Response:
    """Write to a process."""
    wanted = await read_model(request, SendInput)
    data = wanted.input.data()
    kernel_id = await first_kernel(request, Scope.EXECUTE)
    process = await _found(request, kernel_id, wanted.process)
    await context(request).processes.write(principal(request), kernel_id, process.id, data)
    return web.json_response({})


async def stream_process_input(request: web.Request) -> web.Response:
    """Write to a process what comes, for as long as it comes."""
    ctx, who, kernel_id = context(request), principal(request), await first_kernel(request, Scope.EXECUTE)
    process: Process | None = None
    async for said in messages(request, StreamInput, idle_s=INPUT_IDLE_S):
        if said.start is not None:
            process = await _found(request, kernel_id, said.start.process)
        elif said.data is not None:
            if process is None:
                raise BadRequest("The first message names the process.", reason="start")
            await ctx.processes.write(who, kernel_id, process.id, said.data.input.data())
    return web.Response(body=event({}) + ending(), content_type="application/connect+json")


async def close_process_input(request: web.Request) -> web.Response:
    """Close a process's standard input."""
    wanted = await read_model(request, OnProcess)
    kernel_id = await first_kernel(request, Scope.EXECUTE)
    process = await _found(request, kernel_id, wanted.process)
    await context(request).processes.write(principal(request), kernel_id, process.id, b"", eof=True)
    return web.json_response({})


async def signal_sandbox_process(request: web.Request) -> web.Response:
    """Signal a process and its children."""
    wanted = await read_model(request, SendSignal)
    kernel_id = await first_kernel(request, Scope.EXECUTE)
    process = await _found(request, kernel_id, wanted.process)
    await context(request).processes.signal(principal(request), kernel_id, process.id, SIGNALS[wanted.signal])
    return web.json_response({})


async def update_process(request: web.Request) -> web.Response:  # noqa: ARG001 - a handler
    """Say that there are no terminals to be resized. Raises NotOffered, always."""
    raise NotOffered("Terminals are not offered here.", reason="pty")


async def _found(request: web.Request, kernel_id: str, selector: Selector) -> Process:
    if selector.pid is None:
        raise BadRequest("A process is named by its pid.", reason="process")
    return await context(request).e2b.commands.find(principal(request), kernel_id, selector.pid)


async def _followed(
    request: web.Request, kernel_id: str, process: Process, within_s: float | None
) -> web.StreamResponse:
    """Write a process's events until it ends, or the caller's time is over."""
    ctx = context(request)
    latest = None if within_s is None else ctx.clock.monotonic() + within_s
    response = web.StreamResponse()
    response.content_type = "application/connect+json"
    response.headers["X-Accel-Buffering"] = "no"
    await response.prepare(request)
    await response.write(_event({"start": {"pid": process.pid}}))
    beat_s = _beat_s(request) if within_s is None else min(_beat_s(request), max(0.05, within_s))
    last = ending()
    try:
        outputs = ctx.e2b.commands.follow(principal(request), kernel_id, process.id, beat_s=beat_s)
        async with aclosing(outputs):
            async for output in outputs:
                for chunk in output.chunks:
                    data = base64.b64encode(chunk.text.encode("utf-8", "replace")).decode()
                    await response.write(_event({"data": {chunk.stream: data}}))
                if not output.chunks and output.process.state == "running":
                    await response.write(_event({"keepalive": {}}))
                if output.process.state == "ended" and not output.chunks:
                    await response.write(_event({"end": _end(output.process.exit_code)}))
                elif latest is not None and ctx.clock.monotonic() >= latest:
                    last = _failed("deadline_exceeded", "The time given for this process is over.")
                    break
    except GatewayError as error:
        last = _failed(**described(error))
    await response.write(last)
    await response.write_eof()
    return response


def _event(content: dict[str, Any]) -> bytes:
    return event({"event": content})


def _failed(code: str, message: str) -> bytes:
    return envelope(orjson.dumps({"error": {"code": code, "message": message}}), END)


def _end(exit_code: int | None) -> dict[str, Any]:
    """Return how a process ended, as E2B says it: -1 for one that a signal ended."""
    if exit_code is not None and exit_code >= 0:
        return {"exitCode": exit_code, "exited": True, "status": f"exit status {exit_code}"}
    name = "unknown"
    if exit_code is not None:
        with suppress(ValueError):
            name = signal.Signals(-exit_code).name
    return {"exitCode": -1, "exited": False, "status": f"signal: {name}", "error": f"signal: {name}"}


def _beat_s(request: web.Request) -> float:
    given = request.headers.get("Keepalive-Ping-Interval", "")
    wanted = float(given) if given.isascii() and given.isdigit() and len(given) < 6 else KEEPALIVE_S
    return min(max(wanted, LEAST_KEEPALIVE_S), KEEPALIVE_S)
