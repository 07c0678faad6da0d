"""E2B's code interpreter: code in contexts, with its output as it comes."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

from aiohttp import web

from gateway.errors import GatewayError
from gateway.http.bodies import read_model
from gateway.http.context import context, origin, principal, reply
from gateway.http.e2b.credentials import SANDBOX_ID
from gateway.http.e2b.narration import END, KEEPALIVE, UNEXPECTED_END, Narration
from gateway.http.e2b.paths import directory, shown
from gateway.http.e2b.views import ContextView, ContextViews, ExecuteCode, NewContext
from gateway.models import ExecutionStatus

if TYPE_CHECKING:
    from gateway.models import ExecutionResult
    from gateway.models.sandboxes import SandboxContext
    from gateway.services.sandbox_book import Sandbox

KEEPALIVE_S = 5.0
CODE_PORT = "49999"


async def execute_code(request: web.Request) -> web.StreamResponse:
    """Run code and answer with its output line by line; a client that goes away has it interrupted."""
    ctx, who, sandbox = context(request), principal(request), named(request)
    wanted = await read_model(request, ExecuteCode)
    whence = origin(request, "e2b")
    chosen = await ctx.e2b.code.choose(who, sandbox, context_id=wanted.context_id, language=wanted.language)
    narration = Narration(ctx.clock, ctx.settings.server.queue_bytes)
    work = asyncio.create_task(
        ctx.e2b.code.run(
            who,
            sandbox,
            chosen,
            wanted.code,
            env=wanted.env_vars or {},
            origin=whence,
            on_message=narration.deliver,
        )
    )
    # whatever ends it wakes the writer
    work.add_done_callback(lambda _: narration.news.set())
    try:
        return await _told(request, narration, work)
    finally:
        if not work.done():
            work.cancel()
            with suppress(asyncio.CancelledError):
                await work


async def _told(
    request: web.Request, narration: Narration, work: asyncio.Task[ExecutionResult]
) -> web.StreamResponse:
    """Write what is said until the end. What fails before anything was said is raised."""
    response = web.StreamResponse()
    response.content_type = "application/json"
    # nginx would keep back what it is to pass on
    response.headers["X-Accel-Buffering"] = "no"
    while not work.done():
        with suppress(TimeoutError):
            async with asyncio.timeout(KEEPALIVE_S):
                await narration.news.wait()
        lines = narration.take()
        if not response.prepared:
            if work.done() and not lines:
                # what was refused is answered as such
                await work
            await response.prepare(request)
        if lines or not work.done():
            await response.write(lines or KEEPALIVE)
    while lines := narration.take():
        await response.write(lines)
    try:
        ended = (await work).status is not ExecutionStatus.DEAD
    except GatewayError as error:
        narration.fail(error)
        await response.write(narration.take())
        ended = False
    await response.write(END if ended else UNEXPECTED_END)
    await response.write_eof()
    return response


async def create_code_context(request: web.Request) -> web.Response:
    """Start a further context."""
    wanted = await read_model(request, NewContext)
    made = await context(request).e2b.code.create(
        principal(request),
        named(request),
        language=wanted.language,
        cwd=directory(wanted.cwd),
    )
    return reply(_view(made))


async def list_code_contexts(request: web.Request) -> web.Response:
    """List the contexts of a sandbox."""
    return reply(ContextViews([_view(c) for c in context(request).e2b.code.contexts(named(request))]))


async def restart_code_context(request: web.Request) -> web.Response:
    """Start a context afresh."""
    await context(request).e2b.code.restart(
        principal(request), named(request), request.match_info["context_id"]
    )
    return web.Response(status=204)


async def remove_code_context(request: web.Request) -> web.Response:
    """End a context."""
    await context(request).e2b.code.remove(
        principal(request), named(request), request.match_info["context_id"]
    )
    return web.Response(status=204)


async def sandbox_health(request: web.Request) -> web.Response:
    """Tell that a sandbox runs; the guard has looked for it."""
    if request.headers.get("E2b-Sandbox-Port") == CODE_PORT:
        return web.json_response("OK")
    return web.Response(status=204)


def named(request: web.Request) -> Sandbox:
    """Return the sandbox that a request's header names. Raises SandboxNotRunning."""
    return context(request).e2b.sandboxes.running(principal(request), request.headers.get(SANDBOX_ID, ""))


def _view(made: SandboxContext) -> ContextView:
    cwd = made.cwd if made.cwd.startswith("/") else shown(made.cwd)
    return ContextView(id=made.id, language=made.language, cwd=cwd)
