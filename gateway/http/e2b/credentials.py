"""Who asks, as E2B's SDKs say it: a key in X-API-KEY, or a sandbox's own token."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.auth import presented
from gateway.errors import Unauthorized
from gateway.http.context import context

if TYPE_CHECKING:
    from aiohttp import web

    from gateway.models import Principal

SANDBOX_ID = "E2b-Sandbox-Id"
KEY = "X-API-KEY"
# Requests about contexts carry the second one alone.
TOKENS = ("X-Access-Token", "E2B-Traffic-Access-Token")


async def by_key(request: web.Request) -> Principal:
    """Return whose key a request carries. Raises Unauthorized, StoreUnavailable."""
    key = request.headers.get(KEY) or presented(request.headers, {}, {})
    if not key:
        raise Unauthorized("A key of this gateway's is needed: E2B_API_KEY in X-API-KEY.")
    return await context(request).authenticator.authenticate(key)


async def by_token(request: web.Request) -> Principal:
    """Return whom a sandbox's token speaks for, or whose key a request carries.

    Raises Unauthorized, StoreUnavailable, and SandboxNotRunning for the token of a sandbox that has ended.
    """
    token = next((given for name in TOKENS if (given := request.headers.get(name))), None)
    if token is None:
        return await by_key(request)
    return await context(request).e2b.sandboxes.authenticate(request.headers.get(SANDBOX_ID, ""), token)
