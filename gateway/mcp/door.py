"""The MCP server when a gateway starts: not there yet, for the SDK would cost each start half a second."""

from __future__ import annotations

import asyncio
from importlib import import_module
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from aiohttp import web

    from gateway.mcp.mount import Mount
    from gateway.models import Origin, Principal
    from gateway.ports import Clock
    from gateway.toolbox.toolbox import Toolbox


class McpDoor:
    """Begins the MCP server at the first request that there is. Use as an async context manager."""

    def __init__(
        self, toolbox: Toolbox, clock: Clock, *, version: str, extended: bool, max_body_bytes: int
    ) -> None:
        self._toolbox = toolbox
        self._clock = clock
        self._version = version
        self._extended = extended
        self._max_body_bytes = max_body_bytes
        self._beginning = asyncio.Lock()
        self._mount: Mount | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        if self._mount is not None:
            await self._mount.__aexit__(*error)

    async def serve(
        self, request: web.Request, body: bytes, principal: Principal, origin: Origin
    ) -> web.StreamResponse:
        """Answer a request, whose body was read; see `mount.Mount.serve`."""
        async with self._beginning:
            if self._mount is None:
                self._mount = await self._begin()
        return await self._mount.serve(request, body, principal, origin)

    async def _begin(self) -> Mount:
        # beside the loop, which serves the others meanwhile
        server = await asyncio.to_thread(import_module, "gateway.mcp.server")
        mounts = await asyncio.to_thread(import_module, "gateway.mcp.mount")
        tools = server.ToolServer(self._toolbox, self._clock, version=self._version, extended=self._extended)
        mount: Mount = mounts.Mount(tools, max_body_bytes=self._max_body_bytes)
        return await mount.__aenter__()
