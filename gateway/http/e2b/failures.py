"""Errors as E2B's SDKs read them: one style for each of its protocols."""

from __future__ import annotations

from typing import TYPE_CHECKING

import orjson
from aiohttp import web

from gateway.errors import SandboxNotRunning
from gateway.http.e2b.framing import END, envelope

if TYPE_CHECKING:
    from gateway.errors import GatewayError

# Connect's codes by HTTP status, and the statuses that Connect gives them.
CODES = {
    400: "invalid_argument",
    401: "unauthenticated",
    403: "permission_denied",
    404: "not_found",
    408: "deadline_exceeded",
    409: "failed_precondition",
    412: "failed_precondition",
    413: "resource_exhausted",
    429: "resource_exhausted",
    501: "unimplemented",
    502: "unavailable",
    503: "unavailable",
    507: "resource_exhausted",
}
STATUSES = {
    "invalid_argument": 400,
    "unauthenticated": 401,
    "permission_denied": 403,
    "not_found": 404,
    "already_exists": 409,
    "deadline_exceeded": 504,
    "failed_precondition": 400,
    "resource_exhausted": 429,
    "unimplemented": 501,
    "unavailable": 503,
}


def status_of(error: GatewayError) -> int:
    """Return an error's status: to the SDKs 502 means that there is no such sandbox, and nothing else."""
    return 500 if error.status == 502 and not isinstance(error, SandboxNotRunning) else error.status


def as_api(request: web.Request, error: GatewayError) -> web.Response:  # noqa: ARG001 - an ErrorStyle
    """Answer with a number and a sentence, and say whether trying again makes sense."""
    status = status_of(error)
    body = {"code": status, "message": error.message, "reason": error.reason or error.code}
    response = web.json_response(body, status=status)
    response.headers["Should-Retry"] = "false" if error.retry_after_s is None else "true"
    return response


def as_text(request: web.Request, error: GatewayError) -> web.Response:  # noqa: ARG001 - an ErrorStyle
    """Answer with the sentence alone."""
    return web.Response(text=error.message, status=status_of(error))


def as_unary(request: web.Request, error: GatewayError) -> web.Response:  # noqa: ARG001 - an ErrorStyle
    """Answer a call of Connect's that has one answer."""
    body = described(error)
    return web.json_response(body, status=STATUSES.get(body["code"], 500))


def as_stream(request: web.Request, error: GatewayError) -> web.Response:  # noqa: ARG001 - an ErrorStyle
    """Answer a call of Connect's that has a stream of answers: it ends at once, and says why."""
    end = envelope(orjson.dumps({"error": described(error)}), END)
    return web.Response(body=end, content_type="application/connect+json")


def described(error: GatewayError) -> dict[str, str]:
    """Return an error in Connect's words."""
    code = CODES.get(status_of(error), "internal")
    if error.reason == "exists":
        code = "already_exists"
    return {"code": code, "message": error.message}
