"""The one table of routes: what there is, who may use it, what goes in and what comes out, room by room."""

from __future__ import annotations

from gateway.http.archives import ARCHIVE_ROUTES
from gateway.http.blocks.door import BLOCK_ROUTES
from gateway.http.channels import CHANNELS
from gateway.http.contexts import CONTEXT_ROUTES
from gateway.http.e2b.routes import E2B_ROUTES
from gateway.http.executions import EXECUTION_ROUTES
from gateway.http.files import FILE_ROUTES
from gateway.http.jobs import JOB_ROUTES
from gateway.http.kernels import KERNEL_ROUTES
from gateway.http.kernelspecs import SPEC_ROUTES
from gateway.http.mcp import MCP_ROUTES
from gateway.http.processes import PROCESS_ROUTES
from gateway.http.route import Route
from gateway.http.rpc.door import RPC_ROUTES
from gateway.http.server import SERVER_ROUTES
from gateway.http.sessions import SESSION_ROUTES
from gateway.http.tools import TOOL_ROUTES
from gateway.http.workspaces import WORKSPACE_ROUTES

ROUTES: tuple[Route, ...] = (
    *SERVER_ROUTES,
    *SPEC_ROUTES,
    *KERNEL_ROUTES,
    *EXECUTION_ROUTES,
    *FILE_ROUTES,
    *ARCHIVE_ROUTES,
    *WORKSPACE_ROUTES,
    *SESSION_ROUTES,
    CHANNELS,
    *JOB_ROUTES,
    *CONTEXT_ROUTES,
    *PROCESS_ROUTES,
    *TOOL_ROUTES,
    *MCP_ROUTES,
    *RPC_ROUTES,
    *E2B_ROUTES,
    *BLOCK_ROUTES,
)

# Those whose errors and credentials have the gateway's own form: E2B's have that of its SDKs.
PLAIN_ROUTES: tuple[Route, ...] = tuple(route for route in ROUTES if route.errors is None)
