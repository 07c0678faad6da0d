"""Sessions over REST: a path bound to a kernel, as notebook front ends keep them."""

from __future__ import annotations

from aiohttp import web

from gateway.errors import BadRequest
from gateway.http.access import PRINCIPAL, owner
from gateway.http.bodies import read_model
from gateway.http.context import context, principal, reply
from gateway.http.route import Route
from gateway.http.views import KernelChoice, SessionChange, SessionCreate, SessionList, SessionView


async def list_sessions(request: web.Request) -> web.Response:
    """List the caller's sessions."""
    found = await context(request).sessions.list(principal(request))
    return reply(SessionList([SessionView.of(record, handle) for record, handle in found]))


async def create_session(request: web.Request) -> web.Response:
    """Bind a path to a kernel, a new one if need be; a path that has a session already gets that one."""
    wanted = await read_model(request, SessionCreate)
    path, kind = wanted.wanted_path(), wanted.wanted_type()
    if path is None or kind is None:
        missing = "path" if path is None else "type"
        raise BadRequest(f"The field {missing} is missing.", reason=missing)
    kernel = wanted.kernel or KernelChoice()
    record, handle = await context(request).sessions.create(
        principal(request),
        path=path,
        type=kind,
        name=wanted.wanted_name(),
        kernel_name=kernel.name,
        kernel_id=kernel.id,
    )
    return reply(SessionView.of(record, handle), status=201, location=f"/api/sessions/{record.id}")


async def get_session(request: web.Request) -> web.Response:
    """Show a session."""
    found = await context(request).sessions.get(principal(request), request.match_info["session_id"])
    return reply(SessionView.of(*found))


async def change_session(request: web.Request) -> web.Response:
    """Change a session's path, name, type or kernel; the kernel that it had is ended when replaced."""
    wanted = await read_model(request, SessionChange)
    kernel = wanted.kernel or KernelChoice()
    found = await context(request).sessions.update(
        principal(request),
        request.match_info["session_id"],
        path=wanted.wanted_path(),
        name=wanted.wanted_name(),
        type=wanted.wanted_type(),
        kernel_name=kernel.name,
        kernel_id=kernel.id,
    )
    return reply(SessionView.of(*found))


async def delete_session(request: web.Request) -> web.Response:
    """End a session and its kernel."""
    await context(request).sessions.delete(principal(request), request.match_info["session_id"])
    return web.Response(status=204)


SESSION_ROUTES: tuple[Route, ...] = (
    Route(
        "GET",
        "/api/sessions",
        list_sessions,
        PRINCIPAL,
        "List the caller's sessions.",
        {200: SessionList},
        "sessions",
    ),
    Route(
        "POST",
        "/api/sessions",
        create_session,
        PRINCIPAL,
        "Bind a path to a kernel; a path that has a session already gets that one.",
        {201: SessionView},
        "sessions",
        body=SessionCreate,
    ),
    Route(
        "GET",
        "/api/sessions/{session_id}",
        get_session,
        owner("session_id"),
        "Show a session.",
        {200: SessionView},
        "sessions",
    ),
    Route(
        "PATCH",
        "/api/sessions/{session_id}",
        change_session,
        owner("session_id"),
        "Change a session's path, name, type or kernel.",
        {200: SessionView},
        "sessions",
        body=SessionChange,
    ),
    Route(
        "DELETE",
        "/api/sessions/{session_id}",
        delete_session,
        owner("session_id"),
        "End a session and its kernel.",
        {204: None},
        "sessions",
    ),
)
