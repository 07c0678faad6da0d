"""What aiohttp's own parser refuses is answered in the shape of all errors, and costs one line of the log."""

from __future__ import annotations

import structlog
from aiohttp import hdrs, web
from aiohttp.http_exceptions import HttpProcessingError

from gateway.errors import BadRequest, GatewayError

log = structlog.get_logger(__name__)


class Protocol(web.RequestHandler):
    """One client's connection."""

    __slots__ = ()

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
        error: GatewayError = BadRequest("The request is not valid HTTP.", reason=type(exc).__name__)
        response = web.json_response(error.body(), status=error.status, headers={hdrs.SERVER: "cellblock"})
        response.force_close()
        return response
