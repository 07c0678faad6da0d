"""The executions of a kernel that have not ended: list them, interrupt one, cancel one."""

from __future__ import annotations

from aiohttp import web
from pydantic import RootModel

from gateway.http.access import owner
from gateway.http.context import context, principal, reply
from gateway.http.route import Route
from gateway.models import Execution, Scope


class ExecutionList(RootModel[list[Execution]]):
    """Executions, the running one first."""


async def list_executions(request: web.Request) -> web.Response:
    """List the executions that run or wait in a kernel, whatever door they came by."""
    found = context(request).executions.list(principal(request), request.match_info["kernel_id"])
    return reply(ExecutionList(found))


async def interrupt_execution(request: web.Request) -> web.Response:
    """Interrupt a running execution, or take back one that waits."""
    await context(request).executions.interrupt(
        principal(request), request.match_info["kernel_id"], request.match_info["execution_id"]
    )
    return web.Response(status=204)


async def cancel_execution(request: web.Request) -> web.Response:
    """End an execution; where an interrupt does not stop it, the kernel is restarted."""
    await context(request).executions.cancel(
        principal(request), request.match_info["kernel_id"], request.match_info["execution_id"]
    )
    return web.Response(status=204)


EXECUTION_ROUTES: tuple[Route, ...] = (
    Route(
        "GET",
        "/api/kernels/{kernel_id}/executions",
        list_executions,
        owner("kernel_id", Scope.EXECUTE),
        "List the executions that run or wait.",
        {200: ExecutionList},
        "executions",
    ),
    Route(
        "POST",
        "/api/kernels/{kernel_id}/executions/{execution_id}/interrupt",
        interrupt_execution,
        owner("kernel_id", Scope.EXECUTE),
        "Interrupt a running execution, or take back one that waits.",
        {204: None},
        "executions",
    ),
    Route(
        "DELETE",
        "/api/kernels/{kernel_id}/executions/{execution_id}",
        cancel_execution,
        owner("kernel_id", Scope.EXECUTE),
        "End an execution, by a restart of the kernel if need be.",
        {204: None},
        "executions",
    ),
)
