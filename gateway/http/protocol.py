"""One client's connection: bounded heads, and an answer in the common shape to what is malformed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog
from aiohttp import hdrs, web
from aiohttp.http_exceptions import HttpProcessingError, LineTooLong
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader

from gateway.errors import BadRequest, GatewayError, HeadersTooLarge

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from gateway.settings import ServerSettings

MAX_HEADERS = 100
MAX_FIELD_BYTES = 8190
# for a client to take an answer while it still sends its body
LINGER_S = 2.0

log = structlog.get_logger(__name__)


class Protocol(web.RequestHandler):
    """aiohttp's protocol, which has no bound on the time that a head takes."""

    __slots__ = ("_body", "_head_bytes", "_head_timer", "_on_lost", "_on_request", "_server")

    def __init__(
        self,
        manager: web.Server,
        server: ServerSettings,
        *,
        loop: asyncio.AbstractEventLoop,
        on_request: Callable[[], None],
        on_lost: Callable[[], None],
    ) -> None:
        """`on_request` is called when the first head is whole, `on_lost` when the connection has ended."""
        super().__init__(
            manager,
            loop=loop,
            # the middleware writes its own, which has no query in it
            access_log=None,  # type: ignore[arg-type]
            auto_decompress=False,
            keepalive_timeout=server.keepalive_s,
            lingering_time=LINGER_S,
            max_headers=MAX_HEADERS,
            max_line_size=MAX_FIELD_BYTES,
            max_field_size=MAX_FIELD_BYTES,
        )
        self._server = server
        self._on_request = on_request
        self._on_lost = on_lost
        self._body: StreamReader = EMPTY_PAYLOAD
        self._head_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin, and wait for a head."""
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: BaseException | None) -> None:
        """End."""
        self._stop_timer()
        super().connection_lost(exc)
        self._on_lost()

    def data_received(self, data: bytes) -> None:
        """Take bytes, and watch those that belong to a head that is not whole yet."""
        before, in_body = self._request_count, not self._body.is_eof()
        super().data_received(data)
        if self._request_count > before:
            self._stop_timer()
            # its handler starts a turn of the loop later, and may end before the body does
            self._body = self._messages[-1][1]
            self._head_bytes = 0
            if not before:
                self._on_request()
        elif data and not in_body and self._is_in_head():
            self._head_bytes += len(data)
            self._await_head()
            if self._head_bytes > self._server.max_header_bytes:
                self._refuse("431 Request Header Fields Too Large")

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what never came to the application, and close the connection.

        aiohttp's own answer repeats the request as text, and logs a traceback for every stranger's garbage.
        """
        if request.writer.output_size > 0 or not isinstance(exc, HttpProcessingError):
            return super().handle_error(request, status, exc, message)
        log.info("malformed_request", error=type(exc).__name__, remote=request.remote)
        kind = HeadersTooLarge if isinstance(exc, LineTooLong) else BadRequest
        error: GatewayError = kind("The request is not valid HTTP.", reason=type(exc).__name__)
        response = web.json_response(error.body(), status=error.status, headers={hdrs.SERVER: "cellblock"})
        response.force_close()
        return response

    def _is_in_head(self) -> bool:
        return not (self._upgraded or self._payload_parser or self._messages or self._request_in_progress)

    def _await_head(self) -> None:
        if self._head_timer is None:
            self._head_timer = self._loop.call_later(self._server.header_timeout_s, self._be_late)

    def _be_late(self) -> None:
        self._head_timer = None
        self._refuse("408 Request Timeout")

    def _refuse(self, status: str) -> None:
        self._stop_timer()
        transport = self.transport
        if transport is None:
            return
        if self._head_bytes:
            transport.write(f"HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n".encode())
        self.force_close()
        # whoever does not read does not keep it open either
        self._loop.call_later(LINGER_S, transport.abort)

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
