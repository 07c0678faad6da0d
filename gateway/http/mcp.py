"""The way to the MCP server: its one route, and the metadata by which a client learns how to get in."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Protocol

import orjson
from aiohttp import web

from gateway.http.access import PRINCIPAL, PUBLIC
from gateway.http.bodies import read_body
from gateway.http.context import context, origin, principal
from gateway.http.route import Route

if TYPE_CHECKING:
    from gateway.models import Origin, Principal

PATH = "/mcp"
METADATA = "/.well-known/oauth-protected-resource"
# It goes into a header, in quotes.
HOST = re.compile(r"[A-Za-z0-9.:\[\]-]{1,255}")


class McpServer(Protocol):
    """What answers MCP requests."""

    async def serve(
        self, request: web.Request, body: bytes, principal: Principal, origin: Origin
    ) -> web.StreamResponse:
        """Answer a request, whose body was read."""
        ...


async def mcp(request: web.Request) -> web.StreamResponse:
    """Hand an MCP request on, once it is known whose it is."""
    body = await read_body(request)
    return await context(request).mcp.serve(request, body, principal(request), origin(request, "mcp"))


async def protected_resource(request: web.Request) -> web.Response:
    """Tell which issuer's tokens are taken here, and for which scopes (RFC 9728)."""
    oidc = context(request).settings.auth.oidc
    described = {
        "resource": f"{_base(request)}{PATH}",
        "resource_name": "Cellblock",
        "bearer_methods_supported": ["header"],
    }
    if oidc.issuer is not None:
        described |= {"authorization_servers": [oidc.issuer], "scopes_supported": sorted(oidc.scopes)}
    return web.Response(body=orjson.dumps(described), content_type="application/json")


async def protected_mcp(request: web.Request) -> web.Response:
    """Tell the same where RFC 9728 has clients look first."""
    return await protected_resource(request)


def challenge(request: web.Request) -> str:
    """Return what WWW-Authenticate says to a client of MCP's without a good credential."""
    parts = [f'resource_metadata="{_base(request)}{METADATA}{PATH}"']
    oidc = context(request).settings.auth.oidc
    if oidc.issuer is not None:
        granted = sorted(word for word, scopes in oidc.scopes.items() if "admin" not in scopes)
        parts.append(f'scope="{" ".join(granted)}"')
    return f"Bearer {', '.join(parts)}"


def _base(request: web.Request) -> str:
    """Return the gateway's own address as the client has it."""
    scheme = request.scheme
    if context(request).settings.server.behind_proxy:
        said = request.headers.get("X-Forwarded-Proto", scheme)
        scheme = said if said in {"http", "https"} else scheme
    host = request.host
    return f"{scheme}://{host if HOST.fullmatch(host) else 'localhost'}"


MCP_ROUTES: tuple[Route, ...] = (
    Route(
        "POST",
        PATH,
        mcp,
        PRINCIPAL,
        "Speak MCP (streamable HTTP) with the tools for agents.",
        {200: "application/json, text/event-stream", 202: None},
        "agents",
        door="mcp",
    ),
    Route(
        "GET",
        METADATA,
        protected_resource,
        PUBLIC,
        "Tell how to get a credential for MCP.",
        {200: "application/json"},
        "agents",
        door="mcp",
    ),
    Route(
        "GET",
        f"{METADATA}{PATH}",
        protected_mcp,
        PUBLIC,
        "Tell how to get a credential for MCP.",
        {200: "application/json"},
        "agents",
        door="mcp",
    ),
)
