"""Kernels over REST: list, start, look at, interrupt, restart, delete, and execute without a WebSocket."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp import web

from gateway.http.access import PRINCIPAL, owner
from gateway.http.bodies import read_model
from gateway.http.context import context, origin, principal, reply
from gateway.http.route import Route
from gateway.http.views import KernelCreate, KernelList
from gateway.models import ExecuteRequest, ExecutionResult, Kernel, Scope, Usage

if TYPE_CHECKING:
    from gateway.http.context import Context
    from gateway.models import Principal
    from gateway.ports import KernelHandle


async def list_kernels(request: web.Request) -> web.Response:
    """List the caller's kernels."""
    handles = context(request).kernels.list(principal(request))
    return reply(KernelList([handle.model() for handle in handles]))


async def create_kernel(request: web.Request) -> web.Response:
    """Start a kernel."""
    wanted = await read_model(request, KernelCreate)
    handle = await started(context(request), principal(request), wanted)
    left = context(request).quotas.allowance(handle.owner, "starts_per_minute")
    return reply(handle.model(), status=201, location=f"/api/kernels/{handle.id}", allowance=left)


async def started(ctx: Context, who: Principal, wanted: KernelCreate) -> KernelHandle:
    """Start a kernel as a client wants it. Raises what `KernelService.create` raises."""
    workspace = None
    if wanted.workspace is not None:
        workspace = ctx.workspaces.choose(who, wanted.workspace, shared=wanted.shared)
    return await ctx.kernels.create(
        who,
        name=wanted.name,
        env=wanted.env,
        secrets=wanted.secrets,
        kernel_id=wanted.kernel_id,
        limits=wanted.limits,
        workspace=workspace,
    )


async def get_kernel(request: web.Request) -> web.Response:
    """Show a kernel."""
    handle = context(request).kernels.get(principal(request), request.match_info["kernel_id"])
    return reply(handle.model())


async def delete_kernel(request: web.Request) -> web.Response:
    """End a kernel and everything that it started."""
    await context(request).kernels.delete(principal(request), request.match_info["kernel_id"])
    return web.Response(status=204)


async def interrupt_kernel(request: web.Request) -> web.Response:
    """Interrupt what a kernel runs."""
    await context(request).kernels.interrupt(principal(request), request.match_info["kernel_id"])
    return web.Response(status=204)


async def restart_kernel(request: web.Request) -> web.Response:
    """Start a kernel afresh under the same id."""
    handle = await context(request).kernels.restart(principal(request), request.match_info["kernel_id"])
    return reply(handle.model())


async def pause_kernel(request: web.Request) -> web.Response:
    """Freeze a kernel where it is."""
    handle = await context(request).kernels.pause(principal(request), request.match_info["kernel_id"])
    return reply(handle.model())


async def resume_kernel(request: web.Request) -> web.Response:
    """Let a paused kernel go on."""
    handle = await context(request).kernels.resume(principal(request), request.match_info["kernel_id"])
    return reply(handle.model())


async def kernel_usage(request: web.Request) -> web.Response:
    """Show what a kernel's cell uses."""
    return reply(await context(request).kernels.usage(principal(request), request.match_info["kernel_id"]))


async def execute(request: web.Request) -> web.Response:
    """Execute code in a kernel and answer with everything that came of it."""
    ctx, who, kernel_id = context(request), principal(request), request.match_info["kernel_id"]
    wanted = await read_model(request, ExecuteRequest)
    before = await ctx.artifacts.look(who, kernel_id) if wanted.artifacts else None
    result = await ctx.executions.run(who, kernel_id, wanted, origin=origin(request, "rest"))
    if before is not None:
        artifacts = await ctx.artifacts.since(who, kernel_id, before)
        result = result.model_copy(update={"artifacts": artifacts})
    left = ctx.quotas.allowance(who.name, "executions_per_minute")
    return reply(result, allowance=left)


KERNEL_ROUTES: tuple[Route, ...] = (
    Route(
        "GET",
        "/api/kernels",
        list_kernels,
        PRINCIPAL,
        "List the caller's kernels.",
        {200: KernelList},
        "kernels",
    ),
    Route(
        "POST",
        "/api/kernels",
        create_kernel,
        PRINCIPAL,
        "Start a kernel in a cell of its own.",
        {201: Kernel},
        "kernels",
        body=KernelCreate,
    ),
    Route(
        "GET",
        "/api/kernels/{kernel_id}",
        get_kernel,
        owner("kernel_id"),
        "Show a kernel.",
        {200: Kernel},
        "kernels",
    ),
    Route(
        "DELETE",
        "/api/kernels/{kernel_id}",
        delete_kernel,
        owner("kernel_id"),
        "End a kernel and everything that it started.",
        {204: None},
        "kernels",
    ),
    Route(
        "POST",
        "/api/kernels/{kernel_id}/interrupt",
        interrupt_kernel,
        owner("kernel_id"),
        "Interrupt what a kernel runs.",
        {204: None},
        "kernels",
    ),
    Route(
        "POST",
        "/api/kernels/{kernel_id}/restart",
        restart_kernel,
        owner("kernel_id"),
        "Start a kernel afresh under its id.",
        {200: Kernel},
        "kernels",
    ),
    Route(
        "POST",
        "/api/kernels/{kernel_id}/pause",
        pause_kernel,
        owner("kernel_id"),
        "Freeze a kernel, and the clocks of its deadlines.",
        {200: Kernel},
        "kernels",
    ),
    Route(
        "POST",
        "/api/kernels/{kernel_id}/resume",
        resume_kernel,
        owner("kernel_id"),
        "Let a paused kernel go on.",
        {200: Kernel},
        "kernels",
    ),
    Route(
        "GET",
        "/api/kernels/{kernel_id}/usage",
        kernel_usage,
        owner("kernel_id"),
        "Show what a kernel's cell uses, now and at most so far.",
        {200: Usage},
        "kernels",
    ),
    Route(
        "POST",
        "/api/kernels/{kernel_id}/execute",
        execute,
        owner("kernel_id", Scope.EXECUTE),
        "Execute code and answer with all that came of it.",
        {200: ExecutionResult},
        "kernels",
        body=ExecuteRequest,
    ),
)
