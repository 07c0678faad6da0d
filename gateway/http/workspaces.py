"""Workspaces over REST: list and delete; a kernel that names one makes it."""

from __future__ import annotations

from aiohttp import web
from pydantic import RootModel

from gateway.http.access import PRINCIPAL
from gateway.http.context import context, principal, reply
from gateway.http.route import Route
from gateway.models import WorkspaceFacts


class WorkspaceList(RootModel[list[WorkspaceFacts]]):
    """The caller's workspaces by name."""


async def list_workspaces(request: web.Request) -> web.Response:
    """List the caller's workspaces."""
    return reply(WorkspaceList(list(await context(request).workspaces.list(principal(request)))))


async def delete_workspace(request: web.Request) -> web.Response:
    """Delete a workspace of the caller's."""
    await context(request).workspaces.delete(principal(request), request.match_info["name"])
    return web.Response(status=204)


WORKSPACE_ROUTES: tuple[Route, ...] = (
    Route(
        "GET",
        "/api/workspaces",
        list_workspaces,
        PRINCIPAL,
        "List the caller's workspaces: homes that persist between kernels.",
        {200: WorkspaceList},
        "files",
    ),
    Route(
        "DELETE",
        "/api/workspaces/{name}",
        delete_workspace,
        PRINCIPAL,
        "Delete a workspace of the caller's.",
        {204: None},
        "files",
    ),
)
