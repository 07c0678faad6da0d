"""Contexts over REST: the caller's own names for kernels."""

from __future__ import annotations

from aiohttp import web
from pydantic import RootModel

from gateway.http.access import PRINCIPAL
from gateway.http.bodies import read_model
from gateway.http.context import context, principal, reply
from gateway.http.route import Route
from gateway.models.jobs import ContextChange, ContextView


class ContextList(RootModel[list[ContextView]]):
    """The caller's contexts, oldest first."""


async def list_contexts(request: web.Request) -> web.Response:
    """List the caller's contexts."""
    return reply(ContextList(await context(request).contexts.list(principal(request))))


async def open_context(request: web.Request) -> web.Response:
    """Make a context, if there is none of that name that lives."""
    who, name = principal(request), request.match_info["name"]
    wanted = await read_model(request, ContextChange)
    await context(request).contexts.open(who, name, wanted, ttl_s=wanted.ttl_s)
    return reply(await context(request).contexts.get(who, name))


async def get_context(request: web.Request) -> web.Response:
    """Show a context."""
    return reply(await context(request).contexts.get(principal(request), request.match_info["name"]))


async def keep_context(request: web.Request) -> web.Response:
    """Have a context's idle time begin anew."""
    return reply(await context(request).contexts.keep_alive(principal(request), request.match_info["name"]))


async def close_context(request: web.Request) -> web.Response:
    """End a context and its kernel."""
    await context(request).contexts.close(principal(request), request.match_info["name"])
    return web.Response(status=204)


CONTEXT_ROUTES: tuple[Route, ...] = (
    Route(
        "GET",
        "/api/contexts",
        list_contexts,
        PRINCIPAL,
        "List the caller's contexts: names for kernels.",
        {200: ContextList},
        "contexts",
    ),
    Route(
        "GET",
        "/api/contexts/{name}",
        get_context,
        PRINCIPAL,
        "Show a context.",
        {200: ContextView},
        "contexts",
    ),
    Route(
        "PUT",
        "/api/contexts/{name}",
        open_context,
        PRINCIPAL,
        "Make a context, if there is none of that name that lives.",
        {200: ContextView},
        "contexts",
        body=ContextChange,
    ),
    Route(
        "POST",
        "/api/contexts/{name}/keepalive",
        keep_context,
        PRINCIPAL,
        "Have a context's idle time begin anew.",
        {200: ContextView},
        "contexts",
    ),
    Route(
        "DELETE",
        "/api/contexts/{name}",
        close_context,
        PRINCIPAL,
        "End a context and its kernel.",
        {204: None},
        "contexts",
    ),
)
