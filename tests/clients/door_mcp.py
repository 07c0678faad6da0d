"""Doors of MCP, with the official SDK's client: over streamable HTTP, and over `cellblock mcp`."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from typing import TYPE_CHECKING, Any

from tests.clients.door import Door, Failure, Outcome, Refused
from tests.clients.mcp_client import Refusal, call, over_http, over_stdio, structured

if TYPE_CHECKING:
    from mcp import Client


class Call:
    """A call of execute_code."""

    def __init__(self, door: Mcp, code: str, timeout_s: float | None) -> None:
        self._door = door
        arguments: dict[str, Any] = {"code": code, "session_id": door.session_id}
        if timeout_s:
            arguments["timeout_s"] = timeout_s
        self._task = asyncio.create_task(door.client.call_tool("execute_code", arguments))

    async def cancel(self) -> None:
        """Interrupt the session."""
        await call(self._door.client, "interrupt", session_id=self._door.session_id)

    async def disconnect(self) -> None:
        """Give the call up."""
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    async def outcome(self) -> Outcome:
        """Wait for its end."""
        result = await self._task
        try:
            told = structured(result)
        except Refusal as refusal:
            raise Refused(refusal.code, refusal.reason) from None
        error = told.get("error")
        images = iter([each.data for each in result.content if each.type == "image"])
        results = [
            {kind: next(images) if kind == "image/png" else value for kind, value in shown.items()}
            for shown in told["results"]
        ]
        return Outcome(
            told["status"],
            told["stdout"],
            told["stderr"],
            tuple(results),
            Failure(error["ename"], error["evalue"]) if error else None,
            told["truncated"],
            told.get("reason"),
        )


class Mcp(Door):
    """The tools create_session, execute_code and interrupt, over streamable HTTP."""

    name = "MCP: HTTP"
    session_id: str
    client: Client

    async def opened(self) -> None:
        """Connect."""
        self.client = await self.held.enter_async_context(over_http(self.gateway, self.principal))

    async def kernel_id(self) -> str:
        """Return the kernel of the door's session."""
        if self._kernel_id is None:
            self.session_id = (await call(self.client, "create_session"))["session_id"]
            view = await self.side.json("GET", f"/api/contexts/{self.session_id}")
            self._kernel_id = str(view["kernel_id"])
        return self._kernel_id

    async def start(self, code: str, *, timeout_s: float | None = None) -> Call:
        """Call execute_code in the session."""
        await self.kernel_id()
        return Call(self, code, timeout_s)

    async def handle(self) -> str:
        """Return the session's handle."""
        await self.kernel_id()
        return self.session_id

    def nowhere(self) -> str:
        """Return a handle that leads nowhere."""
        return f"s-{secrets.token_hex(20)}"

    async def foreign(self, handle: str) -> object:
        """Run something in it, look at it, write to it, end it."""
        said = []
        for tool, arguments in (
            ("execute_code", {"code": "1"}),
            ("run_command", {"command": "true"}),
            ("usage", {}),
            ("write_file", {"path": "x", "content": "x"}),
            ("interrupt", {}),
            ("close_session", {}),
        ):
            result = await self.client.call_tool(tool, {"session_id": handle, **arguments})
            assert result.is_error
            said.append(result.model_dump(exclude={"meta"}))
        return said


class McpStdio(Mcp):
    """The same over stdin and stdout of a `cellblock mcp` process."""

    name = "MCP: stdio"

    async def opened(self) -> None:
        """Start the process."""
        self.client = await self.held.enter_async_context(over_stdio(self.gateway, self.principal))
