"""The server itself: version, health, readiness, status, identity, metrics, and the API's own description."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

from aiohttp import web
from pydantic import TypeAdapter, ValidationError

from gateway.errors import BadRequest, ShuttingDown
from gateway.http.access import ADMIN, PRINCIPAL, PUBLIC
from gateway.http.context import context, principal, reply
from gateway.http.route import Route
from gateway.http.views import Health, Identity, Me, Ready, Status, Version
from gateway.models import Principal, Scope, timestamp

DOCS = Path(__file__).with_name("docs.html").read_bytes()
ACTIONS = {
    Scope.KERNELS: {"kernels": ("read", "write"), "sessions": ("read", "write"), "kernelspecs": ("read",)},
    Scope.EXECUTE: {"kernels": ("read", "execute"), "kernelspecs": ("read",)},
}
ASKED = TypeAdapter(dict[str, list[str]])


async def version(request: web.Request) -> web.Response:
    """Show the gateway's version."""
    return reply(Version(version=context(request).version))


async def health(_request: web.Request) -> web.Response:
    """Answer, which says that the process lives."""
    return reply(Health())


async def ready(request: web.Request) -> web.Response:
    """Answer that kernels can be had, or with the error that stands against it."""
    ctx = context(request)
    if ctx.sockets.draining:
        raise ShuttingDown("The gateway is shutting down.", retry_after_s=ctx.settings.server.drain_s)
    return reply(Ready(checks=await ctx.readiness.check()))


async def status(request: web.Request) -> web.Response:
    """Show the caller's open sockets and kernels, and when something of the caller's last happened."""
    ctx = context(request)
    models = [handle.model() for handle in ctx.kernels.list(principal(request))]
    started = timestamp(ctx.started)
    return reply(
        Status(
            connections=sum(model.connections for model in models),
            kernels=len(models),
            last_activity=max([started, *(model.last_activity for model in models)]),
            started=started,
        )
    )


async def me(request: web.Request) -> web.Response:
    """Show who the caller is, and which of the permissions named in the query it has."""
    who = principal(request)
    try:
        asked = ASKED.validate_json(request.query.get("permissions") or "{}")
    except ValidationError:
        raise BadRequest(
            'The query parameter permissions must be JSON like {"kernels": ["read"]}.', reason="permissions"
        ) from None
    granted = {
        resource: [a for a in actions if _may(who, resource, a)] for resource, actions in asked.items()
    }
    identity = Identity(username=who.name, name=who.name, display_name=who.name, initials=who.name[0].upper())
    return reply(Me(identity=identity, permissions=granted | {"updatable_fields": []}))


async def openapi(request: web.Request) -> web.Response:
    """Serve the description of this API."""
    return web.Response(body=context(request).openapi, content_type="application/json")


async def docs(_request: web.Request) -> web.Response:
    """Serve a page that shows the description; it needs nothing from elsewhere."""
    response = web.Response(body=DOCS, content_type="text/html", charset="utf-8")
    response.headers["Content-Security-Policy"] = docs_policy(DOCS)
    return response


async def metrics(request: web.Request) -> web.Response:
    """Serve the metrics in Prometheus' text format."""
    ours = context(request).metrics
    return web.Response(body=ours.render(), headers={"Content-Type": ours.content_type})


def docs_policy(page: bytes) -> str:
    """Return a Content-Security-Policy that allows exactly the page's own script and style, by hash."""
    policy = ["default-src 'none'", "connect-src 'self'", "base-uri 'none'", "form-action 'none'"]
    for tag in ("script", "style"):
        inline = re.search(rf"<{tag}>(.*?)</{tag}>".encode(), page, re.DOTALL)
        if inline is not None:
            digest = base64.b64encode(hashlib.sha256(inline.group(1)).digest()).decode()
            policy.append(f"{tag}-src 'sha256-{digest}'")
    return "; ".join([*policy, "frame-ancestors 'self'"])


def _may(who: Principal, resource: str, action: str) -> bool:
    return any(action in ACTIONS[scope].get(resource, ()) for scope in ACTIONS if who.has(scope))


SERVER_ROUTES: tuple[Route, ...] = (
    Route("GET", "/healthz", health, PUBLIC, "Tell that the process lives.", {200: Health}, "server"),
    Route(
        "GET",
        "/readyz",
        ready,
        PUBLIC,
        "Tell that a kernel can be had: one was, in a proved cell, not long ago.",
        {200: Ready},
        "server",
    ),
    Route("GET", "/api", version, PUBLIC, "Show the gateway's version.", {200: Version}, "server"),
    Route(
        "GET",
        "/api/openapi.json",
        openapi,
        PUBLIC,
        "Describe this API in OpenAPI 3.1.",
        {200: "application/json"},
        "server",
    ),
    Route("GET", "/api/docs", docs, PUBLIC, "Show this API as a page.", {200: "text/html"}, "server"),
    Route(
        "GET",
        "/api/status",
        status,
        PRINCIPAL,
        "Show how many kernels and sockets are open, and the last activity.",
        {200: Status},
        "server",
    ),
    Route(
        "GET",
        "/api/me",
        me,
        PRINCIPAL,
        "Show who the caller is and what it may do.",
        {200: Me},
        "server",
        query={"permissions": 'JSON of what is asked, such as {"kernels": ["read", "execute"]}.'},
    ),
    Route("GET", "/metrics", metrics, ADMIN, "Show Prometheus metrics.", {200: "text/plain"}, "server"),
)
