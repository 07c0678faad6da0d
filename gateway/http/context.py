"""What every handler needs, under one typed key of the application and a few of the request."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address
from typing import TYPE_CHECKING

from aiohttp import web

from gateway.models import Door, Origin, Principal
from gateway.services.use_cases import UseCases

if TYPE_CHECKING:
    from datetime import datetime

    from pydantic import BaseModel

    from gateway.errors import Allowance
    from gateway.http.mcp import McpServer
    from gateway.http.sockets import Sockets
    from gateway.ports import Audit, Authenticator, Clock
    from gateway.ports.tracing import Tracer
    from gateway.services.readiness import Readiness
    from gateway.services.sandbox_cases import SandboxCases
    from gateway.settings import Settings
    from gateway.telemetry import Metrics
    from gateway.toolbox.toolbox import Toolbox


@dataclass(frozen=True)
class Context(UseCases):
    """The collaborators of the HTTP door, the use cases among them."""

    settings: Settings
    e2b: SandboxCases
    toolbox: Toolbox
    mcp: McpServer
    audit: Audit
    authenticator: Authenticator
    metrics: Metrics
    tracer: Tracer
    readiness: Readiness
    clock: Clock
    started: datetime
    version: str
    sockets: Sockets
    openapi: bytes


CONTEXT = web.AppKey("CONTEXT", Context)
PRINCIPAL = web.RequestKey("PRINCIPAL", Principal)
REQUEST_ID = web.RequestKey("REQUEST_ID", str)
# W3C's name of the request's span; None where nothing is traced
TRACEPARENT = web.RequestKey[str | None]("TRACEPARENT", str)


def context(request: web.Request) -> Context:
    """Return the collaborators of the application that serves a request."""
    return request.app[CONTEXT]


def principal(request: web.Request) -> Principal:
    """Return who is asking. On a public route there is nobody, and this is a KeyError."""
    return request[PRINCIPAL]


def address(request: web.Request) -> str | None:
    """Return the client's address: the peer's, or behind a proxy what that has added to X-Forwarded-For."""
    if context(request).settings.server.behind_proxy:
        # earlier entries are whatever the client chose to send
        said = ",".join(request.headers.getall("X-Forwarded-For", [])).rpartition(",")[2].strip()
        with suppress(ValueError):
            return str(ip_address(said))
    return request.remote


def origin(request: web.Request, door: Door) -> Origin:
    """Return where a request came from, for the record of what it starts."""
    who = principal(request)
    return Origin(
        principal=who.name,
        key_id=who.key_id,
        door=door,
        address=address(request),
        request_id=request[REQUEST_ID],
        traceparent=request.get(TRACEPARENT),
    )


def reply(
    model: BaseModel, *, status: int = 200, location: str | None = None, allowance: Allowance | None = None
) -> web.Response:
    """Answer with a model as JSON, and say what a quota leaves."""
    response = web.Response(
        body=model.model_dump_json().encode(), status=status, content_type="application/json"
    )
    if location is not None:
        response.headers["Location"] = location
    if allowance is not None:
        response.headers.update(rate_headers(allowance))
    return response


def rate_headers(allowance: Allowance) -> dict[str, str]:
    """Tell of a quota: its bound, what is left, and the seconds until there is more."""
    return {
        "X-RateLimit-Limit": str(allowance.limit),
        "X-RateLimit-Remaining": str(allowance.remaining),
        "X-RateLimit-Reset": str(math.ceil(allowance.reset_s)),
    }
