"""The route of JSON-RPC: a WebSocket of any key, whose methods look at scopes and owners themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from aiohttp import web

from gateway.errors import BadRequest
from gateway.http.access import PRINCIPAL
from gateway.http.context import context, origin, principal
from gateway.http.route import Route
from gateway.http.rpc.connection import RpcConnection
from gateway.http.rpc.service import PATH

if TYPE_CHECKING:
    import asyncio


async def rpc(request: web.Request) -> web.WebSocketResponse:
    """Upgrade to a WebSocket and serve requests until it closes."""
    ctx, who, server = context(request), principal(request), context(request).settings.server
    socket = web.WebSocketResponse(
        heartbeat=server.ping_interval_s, max_msg_size=server.max_frame_bytes, compress=False
    )
    if not socket.can_prepare(request).ok:
        raise BadRequest("This route speaks WebSocket (RFC 6455, version 13) only.")
    connection = RpcConnection(
        socket,
        cast("asyncio.Transport", request.transport),
        ctx=ctx,
        principal=who,
        origin=origin(request, "rpc"),
    )
    with ctx.quotas.socket(who.name):
        await socket.prepare(request)
        with ctx.sockets.opened(connection, None):
            await connection.run()
    return socket


RPC_ROUTES: tuple[Route, ...] = (
    Route(
        "GET",
        PATH,
        rpc,
        PRINCIPAL,
        "Use the whole API over one WebSocket, in JSON-RPC 2.0.",
        {101: None},
        "rpc",
        door="rpc",
    ),
)
