"""The channels of a kernel over a WebSocket."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from aiohttp import hdrs, web

from gateway.errors import BadRequest
from gateway.http.access import owner
from gateway.http.connection import Connection
from gateway.http.context import context, origin, principal
from gateway.http.frames import Frames
from gateway.http.outbox import Outbox
from gateway.http.route import Route
from gateway.models import Page, Scope
from gateway.protocol.websocket import V1, framing

if TYPE_CHECKING:
    import asyncio


async def channels(request: web.Request) -> web.WebSocketResponse:
    """Upgrade to a WebSocket and move messages until it closes. What is refused, is refused before."""
    ctx, who, server = context(request), principal(request), context(request).settings.server
    handle = ctx.kernels.get(who, request.match_info["kernel_id"], scope=Scope.EXECUTE)
    socket = web.WebSocketResponse(
        protocols=(V1,),
        heartbeat=server.ping_interval_s,
        max_msg_size=server.max_frame_bytes,
        compress=False,
        autoping=False,  # the connection reads from pongs how far its client is
    )
    negotiated = socket.can_prepare(request)
    if not negotiated.ok:
        raise BadRequest("This route speaks WebSocket (RFC 6455, version 13) only.")
    current = _wants_current(request)
    outbox = Outbox(max_bytes=server.queue_bytes, max_messages=server.queue_messages, metrics=ctx.metrics)
    connection = Connection(
        socket,
        Frames(socket, request.protocol),
        cast("asyncio.Transport", request.transport),
        principal=who,
        origin=origin(request, "websocket"),
        handle=handle,
        outbox=outbox,
        framing=framing(negotiated.protocol),
        text_only=_is_jupyter_server(request),
        metrics=ctx.metrics,
        audit=ctx.audit,
        clock=ctx.clock,
    )
    session_id = request.query.get("session_id") or None
    with ctx.quotas.socket(who.name):
        # Attached before the handshake is awaited: a kernel that ends meanwhile is noticed.
        outbox.catch_up(handle.attach(outbox, page=Page(who.name, session_id), current=current))
        try:
            await socket.prepare(request)
            with ctx.sockets.opened(connection, (handle.id, who.name, session_id) if session_id else None):
                await connection.run()
        finally:
            handle.detach(outbox)
    return socket


def _wants_current(request: web.Request) -> bool:
    """Tell whether the client asks for the output of what runs now from its start."""
    wanted = request.query.get("replay")
    if wanted not in {None, "current"}:
        raise BadRequest("The parameter replay takes the value current only.", reason="replay")
    return wanted is not None


def _is_jupyter_server(request: web.Request) -> bool:
    """Tell whether a jupyter_server in gateway mode is the client: it takes text frames alone."""
    agent = request.headers.get(hdrs.USER_AGENT, "")
    return agent.startswith("Tornado/") and hdrs.SEC_WEBSOCKET_PROTOCOL not in request.headers


CHANNELS = Route(
    "GET",
    "/api/kernels/{kernel_id}/channels",
    channels,
    owner("kernel_id", Scope.EXECUTE),
    "Talk to a kernel over a WebSocket, in v1.kernel.websocket.jupyter.org or Jupyter's older framing.",
    {101: None},
    "kernels",
    query={
        "session_id": "Names the client; a second socket of the same name replaces the first.",
        "replay": "With the value `current`: first the output of what runs now, from its start.",
    },
    door="websocket",
)
