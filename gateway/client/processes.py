"""Commands and processes in a kernel's cell, beside its kernel."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from gateway.client.paths import checked, kernel_path
from gateway.errors import BadRequest
from gateway.models.processes import (
    CellProcess,
    CommandResult,
    CommandRun,
    Process,
    ProcessOutput,
    ProcessStart,
    Snapshot,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from pydantic import BaseModel

    from gateway.client.transport import Transport

COMMAND_SLACK_S = 30.0
WAIT_S = 20.0


class Processes:
    """The commands that a kernel's cell runs beside its kernel, whether that is busy or not."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def run(
        self,
        kernel_id: str,
        command: str | Sequence[str],
        *,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        stdin: str | None = None,
        timeout_s: float = 60.0,
        within_s: float | None = None,
    ) -> CommandResult:
        """Run a command to its end: a line for bash, or a program and its arguments. It is never repeated."""
        body = _body(
            CommandRun, _command(command), cwd=cwd, env=dict(env or {}), stdin=stdin, timeout_s=timeout_s
        )
        return await self._transport.json(
            CommandResult,
            "POST",
            kernel_path(kernel_id, "commands"),
            body,
            attempt_s=timeout_s + COMMAND_SLACK_S,
            within_s=within_s,
        )

    async def start(
        self,
        kernel_id: str,
        command: str | Sequence[str],
        *,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        stdin: bool = True,
        within_s: float | None = None,
    ) -> Process:
        """Start a process that goes on by itself, and return it. It is never repeated."""
        body = _body(ProcessStart, _command(command), cwd=cwd, env=dict(env or {}), stdin=stdin)
        path = kernel_path(kernel_id, "processes")
        return await self._transport.json(Process, "POST", path, body, within_s=within_s)

    async def list(self, kernel_id: str, *, within_s: float | None = None) -> Sequence[Process]:
        """Return the processes that were started here, the ended ones too as long as they are kept."""
        path = kernel_path(kernel_id, "processes")
        return await self._transport.json(list[Process], "GET", path, within_s=within_s)

    async def read(
        self,
        kernel_id: str,
        process_id: str,
        *,
        cursor: int = 0,
        wait_s: float = 0.0,
        within_s: float | None = None,
    ) -> ProcessOutput:
        """Return the output from a cursor on, waiting `wait_s` seconds for some where there is none."""
        return await self._transport.json(
            ProcessOutput,
            "GET",
            _process(kernel_id, process_id, "output"),
            query={"cursor": cursor, "wait_s": wait_s or None},
            within_s=within_s,
        )

    async def follow(
        self, kernel_id: str, process_id: str, *, cursor: int = 0
    ) -> AsyncIterator[ProcessOutput]:
        """Yield output from a cursor on as it comes, until the process has ended and all was read."""
        while True:
            output = await self.read(kernel_id, process_id, cursor=cursor, wait_s=WAIT_S)
            ended = output.process.state == "ended" and not output.chunks
            if output.chunks or output.lost or ended:
                yield output
            if ended:
                return
            cursor = output.cursor

    async def write(
        self,
        kernel_id: str,
        process_id: str,
        data: str | bytes = "",
        *,
        eof: bool = False,
        within_s: float | None = None,
    ) -> None:
        """Write to a process's standard input, and close it with `eof`. It is never repeated."""
        body: dict[str, Any] = {"eof": eof}
        if isinstance(data, str):
            body["text"] = data
        else:
            body["data"] = base64.b64encode(data).decode()
        path = _process(kernel_id, process_id, "input")
        await self._transport.request("POST", path, body, within_s=within_s)

    async def signal(
        self, kernel_id: str, process_id: str, signal: str | int = "TERM", *, within_s: float | None = None
    ) -> None:
        """Send a signal to a process and all that it started, by name (`TERM`, `INT`) or number."""
        path = _process(kernel_id, process_id, "signal")
        await self._transport.request("POST", path, {"signal": signal}, within_s=within_s)

    async def kill(self, kernel_id: str, process_id: str, *, within_s: float | None = None) -> None:
        """Kill a process and all that it started, and forget it."""
        await self._transport.request("DELETE", _process(kernel_id, process_id), within_s=within_s)

    async def tree(self, kernel_id: str, *, within_s: float | None = None) -> Sequence[CellProcess]:
        """Return every process of the cell, whoever started it."""
        path = kernel_path(kernel_id, "tree")
        return await self._transport.json(list[CellProcess], "GET", path, within_s=within_s)

    async def end(
        self, kernel_id: str, pid: int, signal: str | int = "TERM", *, within_s: float | None = None
    ) -> None:
        """Send a signal to any process of the cell, by its pid there."""
        path, query = kernel_path(kernel_id, "tree", str(pid)), {"signal": signal}
        await self._transport.request("DELETE", path, query=query, again=False, within_s=within_s)

    async def system(
        self, kernel_id: str, *, packages: bool = False, within_s: float | None = None
    ) -> Snapshot:
        """Return the system as the cell sees it, with the Python packages of its environment on request."""
        return await self._transport.json(
            Snapshot,
            "GET",
            kernel_path(kernel_id, "system"),
            query={"packages": packages or None},
            within_s=within_s,
        )


def _process(kernel_id: str, process_id: str, *rest: str) -> str:
    return kernel_path(kernel_id, "processes", checked(process_id, "Process"), *rest)


def _command(command: str | Sequence[str]) -> dict[str, Any]:
    return {"command": command} if isinstance(command, str) else {"argv": list(command)}


def _body(kind: type[BaseModel], command: Mapping[str, Any], **fields: Any) -> dict[str, Any]:
    try:
        return kind(**command, **fields).model_dump(exclude_defaults=True)
    except ValidationError as error:
        raise BadRequest(f"The command is not one: {error.errors()[0]['msg']}.") from error
