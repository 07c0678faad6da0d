"""Builds the aiohttp application from its collaborators and the table of routes."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

import orjson
from aiohttp import web

from gateway.auth import COOKIE
from gateway.http.context import CONTEXT, Context
from gateway.http.middleware import ORIGINS, ROUTE_OF, answer_errors, guard, identify, protect
from gateway.http.openapi import document
from gateway.http.origins import Origins
from gateway.http.routes import ROUTES
from gateway.http.sockets import Sockets

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from datetime import datetime

    from gateway.http.mcp import McpServer
    from gateway.ports import Audit, Authenticator, Clock
    from gateway.ports.tracing import Tracer
    from gateway.services.readiness import Readiness
    from gateway.services.sandbox_cases import SandboxCases
    from gateway.services.use_cases import UseCases
    from gateway.settings import Settings
    from gateway.telemetry import Metrics
    from gateway.toolbox.toolbox import Toolbox


def build(
    use_cases: UseCases,
    *,
    settings: Settings,
    e2b: SandboxCases,
    toolbox: Toolbox,
    mcp: McpServer,
    audit: Audit,
    authenticator: Authenticator,
    metrics: Metrics,
    tracer: Tracer,
    readiness: Readiness,
    clock: Clock,
    started: datetime,
    version: str,
) -> web.Application:
    """Return the application. Its routes are those of the table, and there is no other way in."""
    app = web.Application(
        middlewares=[identify, answer_errors, guard], client_max_size=settings.server.max_body_bytes
    )
    app[CONTEXT] = Context(
        **vars(use_cases),
        settings=settings,
        e2b=e2b,
        toolbox=toolbox,
        mcp=mcp,
        audit=audit,
        authenticator=authenticator,
        metrics=metrics,
        tracer=tracer,
        readiness=readiness,
        clock=clock,
        started=started,
        version=version,
        sockets=Sockets(authenticator, metrics),
        openapi=orjson.dumps(document(ROUTES, version=version, cookie=COOKIE)),
    )
    app[ORIGINS] = Origins(settings.server)
    app[ROUTE_OF] = {
        app.router.add_route(route.method, route.pattern, route.handler): route for route in ROUTES
    }
    app.on_response_prepare.append(protect)
    app.cleanup_ctx.append(_watch_credentials)
    return app


async def drain(app: web.Application) -> None:
    """Close every socket with 1012 and refuse new work; what runs may end. Takes at most `server.drain_s`."""
    ctx = app[CONTEXT]
    await ctx.sockets.drain(ctx.settings.server.drain_s)


async def _watch_credentials(app: web.Application) -> AsyncIterator[None]:
    task = asyncio.create_task(app[CONTEXT].sockets.watch())
    yield
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
