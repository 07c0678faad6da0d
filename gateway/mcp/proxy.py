"""MCP over stdin and stdout for a gateway elsewhere: requests are passed on, and so is what comes of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx2
import mcp_types as types
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server
from mcp.shared.exceptions import MCPError

from gateway.errors import ConfigurationError, GatewayError

if TYPE_CHECKING:
    from mcp.client.session import ClientSession
    from mcp.server.context import ServerRequestContext

    Context = ServerRequestContext[Any, Any]

CONNECT_S = 15.0
# a result with all of its images
MAX_EVENT_BYTES = 128 << 20


class Proxy:
    """Answers an MCP host on this machine by what a gateway's own MCP server answers."""

    def __init__(self, client: Client) -> None:
        info = client.server_info
        self._session: ClientSession = client.session
        self.server: Server[Any] = Server(
            info.name if info else "cellblock",
            title=info.title if info else None,
            version=info.version if info else "",
            instructions=client.instructions,
            on_list_tools=self._list_tools,
            on_call_tool=self._call_tool,
            on_list_resources=self._list_resources,
            on_list_resource_templates=self._list_templates,
            on_read_resource=self._read_resource,
        )

    async def _list_tools(
        self, _ctx: Context, params: types.PaginatedRequestParams | None
    ) -> types.ListToolsResult:
        return await self._session.list_tools(params=_page(params))

    async def _call_tool(self, ctx: Context, params: types.CallToolRequestParams) -> types.CallToolResult:
        async def told(progress: float, total: float | None, message: str | None) -> None:
            await ctx.session.report_progress(progress, total, message)

        wanted = bool(ctx.meta) and (ctx.meta or {}).get("progress_token") is not None
        request = types.CallToolRequest(
            params=types.CallToolRequestParams(name=params.name, arguments=params.arguments)
        )
        # as it comes: the host is the one to check it
        return await self._session.send_request(
            request, types.CallToolResult, progress_callback=told if wanted else None
        )

    async def _list_resources(
        self, _ctx: Context, params: types.PaginatedRequestParams | None
    ) -> types.ListResourcesResult:
        return await self._session.list_resources(params=_page(params))

    async def _list_templates(
        self, _ctx: Context, params: types.PaginatedRequestParams | None
    ) -> types.ListResourceTemplatesResult:
        return await self._session.list_resource_templates(params=_page(params))

    async def _read_resource(
        self, _ctx: Context, params: types.ReadResourceRequestParams
    ) -> types.ReadResourceResult:
        return await self._session.read_resource(params.uri)


def _page(params: types.PaginatedRequestParams | None) -> types.PaginatedRequestParams | None:
    if params is None or params.cursor is None:
        return None
    return types.PaginatedRequestParams(cursor=params.cursor)


async def proxy(url: str, key: str) -> None:
    """Serve MCP over this process's stdin and stdout until the host closes them.

    Raises ConfigurationError when the gateway refuses the key, GatewayError when it does not answer.
    """
    timeout = httpx2.Timeout(CONNECT_S, read=None)
    async with httpx2.AsyncClient(headers={"Authorization": f"Bearer {key}"}, timeout=timeout) as http:
        await _greet(http, url)
        transport = streamable_http_client(
            f"{url.rstrip('/')}/mcp", http_client=http, max_sse_event_size=MAX_EVENT_BYTES
        )
        try:
            async with Client(transport, cache=None) as client:
                server = Proxy(client).server
                async with stdio_server() as (reads, writes):
                    await server.run(reads, writes, server.create_initialization_options())
        except MCPError as error:
            raise GatewayError(f"The gateway at {url} does not speak MCP: {error}.") from error


async def _greet(http: httpx2.AsyncClient, url: str) -> None:
    """Find out what is wrong while it can still be said in a sentence."""
    try:
        answer = await http.get(f"{url.rstrip('/')}/api/me", timeout=CONNECT_S)
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        why = str(error).rstrip(".") or type(error).__name__
        raise GatewayError(f"The gateway at {url} does not answer: {why}.") from error
    if answer.status_code in {401, 403}:
        raise ConfigurationError(f"The gateway at {url} refuses this API key.")
    if answer.status_code != 200:
        raise GatewayError(f"The gateway at {url} answers with {answer.status_code}.")
