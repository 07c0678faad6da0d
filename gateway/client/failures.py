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


def error_of(status: int, reason: str | None, answer: bytes) -> GatewayError:
    """Return the error that a response's body names, or a general one for a body that is not a gateway's."""
    try:
        body = orjson.loads(answer)
    except orjson.JSONDecodeError:
        body = None
    if not isinstance(body, dict) or not isinstance(body.get("message"), str):
        return _general(f"The gateway answered {status} {reason or ''}".rstrip() + ".", "http_error", status)
    detail = body["reason"] if isinstance(body.get("reason"), str) else None
    code = str(body.get("code"))
    kind = _by_code(GatewayError).get(code)
    if kind is None:
        return _general(body["message"], code, status, detail)
    return kind(body["message"], reason=detail)


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
