"""The executions of a kernel that have not ended: list them, interrupt one, cancel one."""

from __future__ import annotations

from aiohttp import web
from pydantic import RootModel

from gateway.http.context import context, principal, reply
from gateway.models import Execution


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
