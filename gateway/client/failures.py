"""What can go wrong with a gateway, as errors: its own answers, and no answer at all."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import aiohttp
import orjson

from gateway.errors import GatewayError

if TYPE_CHECKING:
    from gateway.models import ExecutionResult


class GatewayUnreachable(GatewayError):
    """The gateway does not answer: refused, timed out, or not to be found."""

    code = "gateway_unreachable"
    status = 503


class NoAnswer(GatewayUnreachable):
    """The gateway was reached, perhaps, and its answer did not come in time."""

    code = "no_answer"
    status = 504


class ConnectionLost(GatewayError):
    """The gateway closed the socket before the execution's end; `result` is what had come until then."""

    code = "connection_lost"
    status = 503

    def __init__(self, message: str, result: ExecutionResult) -> None:
        super().__init__(message)
        self.result = result


def reason_of(error: Exception) -> str:
    """Say in a few words why a connection failed."""
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return "its name is not known"
    if isinstance(error, aiohttp.ClientConnectorError) and error.os_error.errno:
        return os.strerror(error.os_error.errno).lower()
    return str(error).rstrip(".") or type(error).__name__


def why_closed(socket: aiohttp.ClientWebSocketResponse, frame: aiohttp.WSMessage | None = None) -> str:
    """Say in a few words why a socket was closed, `frame` being the last that was received, if any."""
    told = frame.extra if frame is not None and frame.type is aiohttp.WSMsgType.CLOSE else None
    return told or {
        1000: "the kernel was deleted or the key revoked",
        1006: "the connection broke",
        1009: "a message was larger than the gateway takes",
        1011: "the gateway failed",
        1012: "the gateway restarts",
    }.get(socket.close_code or 1006, "no reason given")


def error_of(status: int, reason: str | None, answer: bytes, retry_after: str | None = None) -> GatewayError:
    """Return the error that a response's body names, or a general one for a body that is not a gateway's.

    `retry_after` is the header of that name: the seconds after which trying again makes sense.
    """
    error = _named(status, reason, answer)
    if retry_after is not None and retry_after.isascii() and retry_after.isdigit():
        error.retry_after_s = float(retry_after)
    return error


def _named(status: int, reason: str | None, answer: bytes) -> GatewayError:
    try:
        body = orjson.loads(answer)
    except orjson.JSONDecodeError:
        body = None
    if not isinstance(body, dict) or not isinstance(body.get("message"), str):
        return _general(f"The gateway answered {status} {reason or ''}".rstrip() + ".", "http_error", status)
    detail = body["reason"] if isinstance(body.get("reason"), str) else None
    return error_named(str(body.get("code")), body["message"], detail, status)


def error_named(code: str, message: str, reason: str | None, status: int = 500) -> GatewayError:
    """Return the error of a code, or a general one for a code that only a newer gateway knows."""
    kind = _by_code(GatewayError).get(code)
    return _general(message, code, status, reason) if kind is None else kind(message, reason=reason)


def _general(message: str, code: str, status: int, reason: str | None = None) -> GatewayError:
    error = GatewayError(message, reason=reason)
    error.code, error.status = code, status
    return error


def _by_code(base: type[GatewayError]) -> dict[str, type[GatewayError]]:
    """Return the classes of gateway.errors by their codes."""
    found = {base.code: base}
    for kind in base.__subclasses__():
        if kind.__module__ == base.__module__:
            found |= _by_code(kind)
    return found
