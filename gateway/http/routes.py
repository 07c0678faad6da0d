"""The one table of routes: what there is, who may use it, what goes in and what comes out."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from aiohttp import hdrs, web

from gateway.http import (
    archives,
    channels,
    executions,
    files,
    kernels,
    kernelspecs,
    server,
    sessions,
    workspaces,
)
from gateway.http.access import ADMIN, PRINCIPAL, PUBLIC, Access, owner
from gateway.http.file_views import FileChange, FileList, FileView, UnpackedView
from gateway.http.views import (
    Health,
    KernelCreate,
    KernelList,
    Me,
    SessionChange,
    SessionCreate,
    SessionList,
    SessionView,
    SpecList,
    SpecView,
    Status,
    Version,
)
from gateway.http.workspaces import WorkspaceList
from gateway.models import ExecuteRequest, ExecutionResult, Kernel, Scope, Usage

if TYPE_CHECKING:
    from pydantic import BaseModel

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True)
class Route:
    """One route. `responses` maps a success status to a model, to a media type, or to None for no body."""

    method: str
    path: str
    handler: Handler
    access: Access
    summary: str
    responses: Mapping[int, type[BaseModel] | str | None]
    tag: str
    body: type[BaseModel] | None = None
    query: Mapping[str, str] = field(default_factory=dict)

    @property
    def changes(self) -> bool:
        """Tell whether the method may change something."""
        return self.method not in {hdrs.METH_GET, hdrs.METH_HEAD}

    @property
    def pattern(self) -> str:
        """Return the path as the router takes it: a final `{path}` may hold slashes."""
        return re.sub(r"\{path\}$", "{path:(?s:.+)}", self.path)


CHANNELS = Route(
    "GET",
    "/api/kernels/{kernel_id}/channels",
    channels.channels,
    owner("kernel_id", Scope.EXECUTE),
    "Talk to a kernel over a WebSocket, in v1.kernel.websocket.jupyter.org or Jupyter's older framing.",
    {101: None},
    "kernels",
    query={
        "session_id": "Names the client; a second socket of the same name replaces the first.",
        "replay": "With the value `current`: first the output of what runs now, from its start.",
    },
)

ROUTES: tuple[Route, ...] = (
    Route("GET", "/healthz", server.health, PUBLIC, "Tell that the process lives.", {200: Health}, "server"),
    Route("GET", "/api", server.version, PUBLIC, "Show the gateway's version.", {200: Version}, "server"),
    Route(
        "GET",
        "/api/openapi.json",
        server.openapi,
        PUBLIC,
        "Describe this API in OpenAPI 3.1.",
        {200: "application/json"},
        "server",
    ),
    Route("GET", "/api/docs", server.docs, PUBLIC, "Show this API as a page.", {200: "text/html"}, "server"),
    Route(
        "GET",
        "/api/status",
        server.status,
        PRINCIPAL,
        "Show how many kernels and sockets are open, and the last activity.",
        {200: Status},
        "server",
    ),
    Route(
        "GET",
        "/api/me",
        server.me,
        PRINCIPAL,
        "Show who the caller is and what it may do.",
        {200: Me},
        "server",
        query={"permissions": 'JSON of what is asked, such as {"kernels": ["read", "execute"]}.'},
    ),
    Route(
        "GET", "/metrics", server.metrics, ADMIN, "Show Prometheus metrics.", {200: "text/plain"}, "server"
    ),
    Route(
        "GET",
        "/api/kernelspecs",
        kernelspecs.list_specs,
        PRINCIPAL,
        "List the kernelspecs that may be started.",
        {200: SpecList},
        "kernelspecs",
    ),
    Route(
        "GET",
        "/api/kernelspecs/{name}",
        kernelspecs.get_spec,
        PRINCIPAL,
        "Show a kernelspec.",
        {200: SpecView},
        "kernelspecs",
    ),
    *(
        Route(
            method,
            "/kernelspecs/{name}/{file}",
            kernelspecs.get_resource,
            PRINCIPAL,
            "Fetch a kernelspec's logo, kernel.js or kernel.css.",
            {200: "application/octet-stream"},
            "kernelspecs",
        )
        for method in ("GET", "HEAD")
    ),
    Route(
        "GET",
        "/api/kernels",
        kernels.list_kernels,
        PRINCIPAL,
        "List the caller's kernels.",
        {200: KernelList},
        "kernels",
    ),
    Route(
        "POST",
        "/api/kernels",
        kernels.create_kernel,
        PRINCIPAL,
        "Start a kernel in a cell of its own.",
        {201: Kernel},
        "kernels",
        body=KernelCreate,
    ),
    Route(
        "GET",
        "/api/kernels/{kernel_id}",
        kernels.get_kernel,
        owner("kernel_id"),
        "Show a kernel.",
        {200: Kernel},
        "kernels",
    ),
    Route(
        "DELETE",
        "/api/kernels/{kernel_id}",
        kernels.delete_kernel,
        owner("kernel_id"),
        "End a kernel and everything that it started.",
        {204: None},
        "kernels",
    ),
    Route(
        "POST",
        "/api/kernels/{kernel_id}/interrupt",
        kernels.interrupt_kernel,
        owner("kernel_id"),
        "Interrupt what a kernel runs.",
        {204: None},
        "kernels",
    ),
    Route(
        "POST",
        "/api/kernels/{kernel_id}/restart",
        kernels.restart_kernel,
        owner("kernel_id"),
        "Start a kernel afresh under its id.",
        {200: Kernel},
        "kernels",
    ),
    Route(
        "POST",
        "/api/kernels/{kernel_id}/pause",
        kernels.pause_kernel,
        owner("kernel_id"),
        "Freeze a kernel, and the clocks of its deadlines.",
        {200: Kernel},
        "kernels",
    ),
    Route(
        "POST",
        "/api/kernels/{kernel_id}/resume",
        kernels.resume_kernel,
        owner("kernel_id"),
        "Let a paused kernel go on.",
        {200: Kernel},
        "kernels",
    ),
    Route(
        "GET",
        "/api/kernels/{kernel_id}/usage",
        kernels.kernel_usage,
        owner("kernel_id"),
        "Show what a kernel's cell uses, now and at most so far.",
        {200: Usage},
        "kernels",
    ),
    Route(
        "GET",
        "/api/kernels/{kernel_id}/executions",
        executions.list_executions,
        owner("kernel_id", Scope.EXECUTE),
        "List the executions that run or wait.",
        {200: executions.ExecutionList},
        "executions",
    ),
    Route(
        "POST",
        "/api/kernels/{kernel_id}/executions/{execution_id}/interrupt",
        executions.interrupt_execution,
        owner("kernel_id", Scope.EXECUTE),
        "Interrupt a running execution, or take back one that waits.",
        {204: None},
        "executions",
    ),
    Route(
        "DELETE",
        "/api/kernels/{kernel_id}/executions/{execution_id}",
        executions.cancel_execution,
        owner("kernel_id", Scope.EXECUTE),
        "End an execution, by a restart of the kernel if need be.",
        {204: None},
        "executions",
    ),
    Route(
        "POST",
        "/api/kernels/{kernel_id}/execute",
        kernels.execute,
        owner("kernel_id", Scope.EXECUTE),
        "Execute code and answer with all that came of it.",
        {200: ExecutionResult},
        "kernels",
        body=ExecuteRequest,
    ),
    Route(
        "GET",
        "/api/kernels/{kernel_id}/files",
        files.list_files,
        owner("kernel_id", Scope.FILES),
        "List a directory of a kernel's home.",
        {200: FileList},
        "files",
        query={
            "path": "The directory; the home itself when left out.",
            "recursive": "true lists what is below it too.",
            "limit": "Most entries that are listed.",
        },
    ),
    Route(
        "GET",
        "/api/kernels/{kernel_id}/files-archive",
        archives.download_archive,
        owner("kernel_id", Scope.FILES),
        "Download a directory of a kernel's home as an archive.",
        {200: "application/gzip, application/zip"},
        "files",
        query={"path": "The directory; the home itself when left out.", "format": "tar.gz or zip."},
    ),
    Route(
        "POST",
        "/api/kernels/{kernel_id}/files-archive",
        archives.upload_archive,
        owner("kernel_id", Scope.FILES),
        "Unpack an archive into a directory of a kernel's home.",
        {201: UnpackedView},
        "files",
        query={"path": "The directory; the home itself when left out.", "format": "tar.gz or zip."},
    ),
    *(
        Route(
            method,
            "/api/kernels/{kernel_id}/files/{path}",
            files.read_file,
            owner("kernel_id", Scope.FILES),
            "Read a file of a kernel's home, or a range of it.",
            {200: "application/octet-stream", 206: "application/octet-stream", 304: None},
            "files",
        )
        for method in ("GET", "HEAD")
    ),
    Route(
        "PUT",
        "/api/kernels/{kernel_id}/files/{path}",
        files.write_file,
        owner("kernel_id", Scope.FILES),
        "Write a file of a kernel's home: whole, or not at all.",
        {200: FileView, 201: FileView},
        "files",
    ),
    Route(
        "POST",
        "/api/kernels/{kernel_id}/files/{path}",
        files.change_file,
        owner("kernel_id", Scope.FILES),
        "Append to a file, edit it, move it, or make a directory.",
        {200: FileView, 201: FileView},
        "files",
        body=FileChange,
    ),
    Route(
        "DELETE",
        "/api/kernels/{kernel_id}/files/{path}",
        files.delete_file,
        owner("kernel_id", Scope.FILES),
        "Remove a file or a directory.",
        {204: None},
        "files",
        query={"recursive": "true removes a directory with all that is in it."},
    ),
    Route(
        "GET",
        "/api/workspaces",
        workspaces.list_workspaces,
        PRINCIPAL,
        "List the caller's workspaces: homes that persist between kernels.",
        {200: WorkspaceList},
        "files",
    ),
    Route(
        "DELETE",
        "/api/workspaces/{name}",
        workspaces.delete_workspace,
        PRINCIPAL,
        "Delete a workspace of the caller's.",
        {204: None},
        "files",
    ),
    CHANNELS,
    Route(
        "GET",
        "/api/sessions",
        sessions.list_sessions,
        PRINCIPAL,
        "List the caller's sessions.",
        {200: SessionList},
        "sessions",
    ),
    Route(
        "POST",
        "/api/sessions",
        sessions.create_session,
        PRINCIPAL,
        "Bind a path to a kernel; a path that has a session already gets that one.",
        {201: SessionView},
        "sessions",
        body=SessionCreate,
    ),
    Route(
        "GET",
        "/api/sessions/{session_id}",
        sessions.get_session,
        owner("session_id"),
        "Show a session.",
        {200: SessionView},
        "sessions",
    ),
    Route(
        "PATCH",
        "/api/sessions/{session_id}",
        sessions.change_session,
        owner("session_id"),
        "Change a session's path, name, type or kernel.",
        {200: SessionView},
        "sessions",
        body=SessionChange,
    ),
    Route(
        "DELETE",
        "/api/sessions/{session_id}",
        sessions.delete_session,
        owner("session_id"),
        "End a session and its kernel.",
        {204: None},
        "sessions",
    ),
)
