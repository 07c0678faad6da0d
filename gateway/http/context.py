"""What every handler needs, under one typed key of the application and a few of the request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from aiohttp import web

from gateway.models import Origin, Principal

if TYPE_CHECKING:
    from datetime import datetime

    from pydantic import BaseModel

    from gateway.http.sockets import Sockets
    from gateway.ports import Authenticator, Clock
    from gateway.services.executions import ExecutionService
    from gateway.services.kernels import KernelService
    from gateway.services.sessions import SessionService
    from gateway.settings import Settings
    from gateway.telemetry import Metrics


@dataclass(frozen=True)
class Context:
    """The collaborators of the HTTP door."""

    settings: Settings
    kernels: KernelService
    executions: ExecutionService
    sessions: SessionService
    authenticator: Authenticator
    metrics: Metrics
    clock: Clock
    started: datetime
    version: str
    sockets: Sockets
    openapi: bytes


CONTEXT = web.AppKey("CONTEXT", Context)
PRINCIPAL = web.RequestKey("PRINCIPAL", Principal)
REQUEST_ID = web.RequestKey("REQUEST_ID", str)


def context(request: web.Request) -> Context:
    """Return the collaborators of the application that serves a request."""
    return request.app[CONTEXT]


def principal(request: web.Request) -> Principal:
    """Return who is asking. On a public route there is nobody, and this is a KeyError."""
    return request[PRINCIPAL]


def origin(request: web.Request, door: Literal["rest", "websocket"]) -> Origin:
    """Return where a request came from, for the record of what it starts."""
    who = principal(request)
    return Origin(
        principal=who.name,
        key_id=who.key_id,
        door=door,
        address=request.remote,
        request_id=request[REQUEST_ID],
    )


def reply(model: BaseModel, *, status: int = 200, location: str | None = None) -> web.Response:
    """Answer with a model as JSON."""
    response = web.Response(
        body=model.model_dump_json().encode(), status=status, content_type="application/json"
    )
    if location is not None:
        response.headers["Location"] = location
    return response
