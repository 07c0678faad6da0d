"""The official SDK's MCP client for tests: opened and closed in a task of its own, as its scopes demand."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import httpx2
from mcp import Client, StdioServerParameters
from mcp.client.streamable_http import streamable_http_client

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import mcp_types as types

    from tests.gateway import Gateway


class Refusal(Exception):
    """A tool's error: the gateway's code, its reason, and all that was said."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        head = text.partition(":")[0]
        self.code, _, reason = head.partition(" (")
        self.reason = reason.rstrip(")") or None
        self.text = text


@contextlib.asynccontextmanager
async def hosted(client: Client) -> AsyncIterator[Client]:
    """Keep a client open while the body runs."""
    up: asyncio.Future[Client] = asyncio.get_running_loop().create_future()
    down = asyncio.Event()

    async def live() -> None:
        try:
            async with client as opened:
                up.set_result(opened)
                await down.wait()
        except Exception as error:  # noqa: BLE001 - told to who waits
            if not up.done():
                up.set_exception(error)

    task = asyncio.create_task(live())
    try:
        yield await up
    finally:
        down.set()
        await asyncio.wait({task}, timeout=15)
        assert task.done(), "the client does not close"


@contextlib.asynccontextmanager
async def over_http(
    gateway: Gateway, name: str = "alice", *, scopes: str | None = None, mode: Any = "auto"
) -> AsyncIterator[Client]:
    """Give a client of a principal's over streamable HTTP."""
    headers = {"Authorization": f"Bearer {gateway.key(name, scopes)}"}
    async with httpx2.AsyncClient(headers=headers, timeout=90) as http:
        transport = streamable_http_client(f"{gateway.url}/mcp", http_client=http)
        async with hosted(Client(transport, mode=mode)) as client:
            yield client


@contextlib.asynccontextmanager
async def over_stdio(
    gateway: Gateway, name: str = "alice", *, scopes: str | None = None, mode: Any = "auto"
) -> AsyncIterator[Client]:
    """Give a client of a principal's over a `cellblock mcp` process."""
    program, *arguments = gateway.command("mcp", "--url", gateway.url)
    server = StdioServerParameters(
        command=program, args=arguments, env={"CELLBLOCK_KEY": gateway.key(name, scopes)}
    )
    async with hosted(Client(server, mode=mode)) as client:
        yield client


def structured(result: types.CallToolResult) -> dict[str, Any]:
    """Return what a tool gave. Raises Refusal."""
    if result.is_error:
        [said] = result.content
        assert said.type == "text"
        raise Refusal(said.text)
    assert isinstance(result.structured_content, dict)
    return result.structured_content


async def call(client: Client, tool: str, **arguments: Any) -> dict[str, Any]:
    """Call a tool and return what it gives. Raises Refusal."""
    result = await client.call_tool(tool, arguments)
    return structured(result)
