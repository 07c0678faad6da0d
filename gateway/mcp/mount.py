"""MCP under the gateway's own roof: the SDK's streamable HTTP application, and the task that it lives in."""

from __future__ import annotations

import asyncio
import secrets
from contextlib import suppress
from typing import TYPE_CHECKING, Self

from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS

from gateway.mcp.asgi import Exchange
from gateway.mcp.caller import KEY, Caller
from gateway.mcp.single import Single, single, version_of

if TYPE_CHECKING:
    from aiohttp import web

    from gateway.mcp.server import ToolServer
    from gateway.models import Origin, Principal

SESSION, VERSION = "Mcp-Session-Id", "MCP-Protocol-Version"
MAX_SESSION_CHARS = 128


class Mount:
    """Serves MCP requests that the guard has let through. Use as an async context manager.

    No request leaves anything behind: any revision that the SDK speaks is served without a session of the
    server's. Clients of the older ones still get a session id, which we do not keep: it tells their requests
    from those of others with the same key when they take one back.
    """

    def __init__(self, tools: ToolServer, *, max_body_bytes: int) -> None:
        self._tools = tools
        self._manager = StreamableHTTPSessionManager(
            tools.server, stateless=True, max_request_body_size=max_body_bytes
        )
        self._up, self._stop = asyncio.Event(), asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._live())
        await self._up.wait()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._tools.close()
        self._stop.set()
        if self._task is not None:
            with suppress(asyncio.CancelledError):
                await self._task

    async def serve(
        self, request: web.Request, body: bytes, principal: Principal, origin: Origin
    ) -> web.StreamResponse:
        """Answer a request, whose body was read. When its client goes away, what it asked for is stopped."""
        session = request.headers.get(SESSION, "")[:MAX_SESSION_CHARS]
        headers = {}
        if not session and request.headers.get(VERSION, "") in {"", *HANDSHAKE_PROTOCOL_VERSIONS}:
            headers[SESSION] = secrets.token_urlsafe(24)
        exchange = Exchange(request, body, {KEY: Caller(principal, origin, session)})
        asked = single(request.headers, body)
        if asked is not None:
            answering = Single(self._tools.server, asked, version_of(request.headers))
            return await exchange.run(answering, headers)
        return await exchange.run(self._manager.handle_request, headers)

    async def _live(self) -> None:
        # entered and left in one task, as its scopes demand
        async with self._manager.run():
            self._up.set()
            await self._stop.wait()
