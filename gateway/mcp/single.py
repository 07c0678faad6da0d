"""One request of an older revision: answered as JSON where it is quick, else as a stream of events.

The SDK's own way makes a session, streams and tasks for each of them, which costs more than to answer it. It
serves its newest revision by itself as is done here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

import anyio
from mcp.server.connection import Connection
from mcp.server.runner import modern_error_data, serve_one
from mcp.shared.exceptions import NoBackChannelError
from mcp.shared.jsonrpc_dispatcher import progress_token_from_params
from mcp.shared.message import ServerMessageMetadata
from mcp.shared.transport_context import TransportContext
from mcp_types import (
    DEFAULT_NEGOTIATED_VERSION,
    JSONRPCError,
    JSONRPCNotification,
    JSONRPCRequest,
    JSONRPCResponse,
    jsonrpc_message_adapter,
)
from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS
from pydantic import ValidationError
from starlette.requests import Request

if TYPE_CHECKING:
    from mcp.server.lowlevel import Server
    from mcp.shared.dispatcher import CallOptions

    from gateway.mcp.asgi import Event

    Receive = Callable[[], Awaitable[Event]]
    Send = Callable[[Event], Awaitable[None]]

# before proxies take a silent answer for a dead one
PING_S = 15.0
JSON, EVENTS = "application/json", "text/event-stream"


def single(headers: Mapping[str, str], body: bytes) -> JSONRPCRequest | None:
    """Return the request that a body is, if it can be answered here; all else, faults too, is the SDK's."""
    accepts, kind = headers.get("Accept", ""), headers.get("Content-Type", "").partition(";")[0].strip()
    plain = JSON in accepts and EVENTS in accepts and kind == JSON
    if not plain or version_of(headers) not in HANDSHAKE_PROTOCOL_VERSIONS:
        return None
    try:
        asked = jsonrpc_message_adapter.validate_json(body, by_name=False)
    except ValidationError:
        return None
    return asked if isinstance(asked, JSONRPCRequest) and asked.method != "initialize" else None


def version_of(headers: Mapping[str, str]) -> str:
    """Return the revision that a client speaks; one that names none speaks that which knew no such header."""
    return headers.get("MCP-Protocol-Version") or DEFAULT_NEGOTIATED_VERSION


class Single:
    """An ASGI application that answers one request by a server's handlers, and keeps nothing of it."""

    def __init__(self, server: Server[Any], asked: JSONRPCRequest, version: str) -> None:
        self._server = server
        self._asked = asked
        self._version = version

    async def __call__(self, scope: Event, _receive: Receive, send: Send) -> None:
        """Answer. When this is cancelled, for its client is gone, so is the handler."""
        answer = Answer(send)
        task = asyncio.create_task(self._handled(Channel(self._asked, Request(scope), answer)))
        try:
            while not (await asyncio.wait({task}, timeout=PING_S))[0]:
                await answer.ping()
            await answer.end(task.result())
        finally:
            task.cancel()

    async def _handled(self, channel: Channel) -> bytes:
        asked, connection = self._asked, Connection.from_envelope(self._version, None, None)
        try:
            result = await serve_one(
                self._server, channel, asked.method, asked.params, connection=connection, lifespan_state={}
            )
        except Exception as error:  # noqa: BLE001 - the SDK says what becomes of it, and logs it
            return _encoded(JSONRPCError(jsonrpc="2.0", id=asked.id, error=modern_error_data(error)))
        return _encoded(JSONRPCResponse(jsonrpc="2.0", id=asked.id, result=result))


class Answer:
    """The answer to one request, a stream once something was told before its end; afterwards nothing is."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._streams = self._over = False
        # a handler may tell something while the silence before is filled
        self._turn = asyncio.Lock()

    async def tell(self, message: bytes) -> None:
        """Send a message that is not the last."""
        await self._stream(_event(message))

    async def ping(self) -> None:
        """Show that somebody is still at it."""
        await self._stream(b": ping\r\n\r\n")

    async def end(self, message: bytes) -> None:
        """Send the last message."""
        async with self._turn:
            self._over = True
            if not self._streams:
                await self._begin(JSON)
            body = _event(message) if self._streams else message
            await self._send({"type": "http.response.body", "body": body, "more_body": False})

    async def _stream(self, piece: bytes) -> None:
        async with self._turn:
            if self._over:
                return
            if not self._streams:
                self._streams = True
                await self._begin(EVENTS)
            await self._send({"type": "http.response.body", "body": piece, "more_body": True})

    async def _begin(self, kind: str) -> None:
        headers = [(b"content-type", kind.encode())]
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})


class Channel:
    """What a handler has of its client (the SDK's DispatchContext): it may tell it things, not ask."""

    can_send_request = False

    def __init__(self, asked: JSONRPCRequest, request: Request, answer: Answer) -> None:
        self.transport = TransportContext(
            kind="streamable-http", can_send_request=False, headers=request.headers
        )
        self.request_id = asked.id
        self.message_metadata = ServerMessageMetadata(request_context=request)
        self.cancel_requested = anyio.Event()
        self._token = progress_token_from_params(asked.params)
        self._answer = answer

    async def send_raw_request(
        self,
        method: str,
        params: Mapping[str, Any] | None,  # noqa: ARG002
        opts: CallOptions | None = None,  # noqa: ARG002
    ) -> dict[str, Any]:
        """Refuse: the client's reply would have nowhere to go."""
        raise NoBackChannelError(method)

    async def notify(
        self,
        method: str,
        params: Mapping[str, Any] | None,
        opts: CallOptions | None = None,  # noqa: ARG002
    ) -> None:
        """Tell the client something."""
        with_params = {} if params is None else {"params": dict(params)}
        told = JSONRPCNotification(jsonrpc="2.0", method=method, **with_params)
        await self._answer.tell(_encoded(told))

    async def progress(self, progress: float, total: float | None = None, message: str | None = None) -> None:
        """Tell how far it is, where the client wants to know."""
        if self._token is None:
            return
        facts = {"progressToken": self._token, "progress": progress, "total": total, "message": message}
        known = {name: value for name, value in facts.items() if value is not None}
        await self.notify("notifications/progress", known)


def _encoded(message: JSONRPCResponse | JSONRPCError | JSONRPCNotification) -> bytes:
    return message.model_dump_json(by_alias=True, exclude_unset=True).encode()


def _event(message: bytes) -> bytes:
    return b"event: message\r\ndata: " + message + b"\r\n\r\n"
