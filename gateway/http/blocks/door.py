"""The routes of result blocks: sessions, tool calls in them, and their files."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING
from uuid import uuid4

from aiohttp import BodyPartReader, web

from gateway.errors import BadRequest, Forbidden
from gateway.http.access import PRINCIPAL
from gateway.http.blocks.tools import Tools
from gateway.http.blocks.views import (
    Answer,
    AnyCall,
    FileEntry,
    Files,
    NewSession,
    ResultBlock,
    Session,
    Stored,
)
from gateway.http.bodies import read_model
from gateway.http.context import context, origin, principal, reply
from gateway.http.files import describe
from gateway.http.forms import pieces_of_part
from gateway.http.route import Route
from gateway.models import Scope
from gateway.models.jobs import KernelOptions
from gateway.services.files import Expected, pieces_of
from gateway.services.kernels import require

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gateway.models import Limits

PREFIX, SESSION = "/otari/v1", "blocks-"
MAX_PATH_BYTES = 4096


async def lease_session(request: web.Request) -> web.Response:
    """Lease a session: a context with a kernel of its own."""
    ctx, who = context(request), principal(request)
    wanted = await read_model(request, NewSession)
    require(who, Scope.EXECUTE)
    name = f"{SESSION}{uuid4().hex}"
    limits = await _opened(request, name, wanted)
    session = Session(
        session_id=name,
        idle_timeout_seconds=limits.idle_timeout_s and int(limits.idle_timeout_s),
        max_lifetime_seconds=limits.max_lifetime_s and int(limits.max_lifetime_s),
        created_at=ctx.clock.now().timestamp(),
    )
    return reply(session, status=201)


async def run_block_tool(request: web.Request) -> web.Response:
    """Run a tool call in a session; what the code itself gets wrong is a part of the answer."""
    ctx, who = context(request), principal(request)
    call = (await read_model(request, AnyCall)).root
    tools = Tools(ctx, who, origin(request, "rest"), await _kernel_id(request))
    began = ctx.clock.monotonic()
    outcome = await tools.run(call)
    own = call.tool_use_id or f"srvtoolu_{uuid4().hex}"
    answer = Answer(
        tool_use_id=own,
        execution_time_ms=round((ctx.clock.monotonic() - began) * 1000),
        result_block=ResultBlock(type=f"{call.tool}_tool_result", tool_use_id=own, content=outcome),
    )
    return reply(answer)


async def release_session(request: web.Request) -> web.Response:
    """Release a session."""
    await context(request).contexts.close(principal(request), request.match_info["name"])
    return web.Response(status=204)


async def list_block_files(request: web.Request) -> web.Response:
    """List a directory of a session's home."""
    kernel_id, path = await _kernel_id(request), request.query.get("path", ".")
    with _confined():
        walk = await context(request).files.walk(
            principal(request), kernel_id, "" if path == "." else path, depth=1, limit=None
        )
    entries = [
        FileEntry(path=each.path, size_bytes=each.size, modified_at=each.modified_ns / 1e9)
        for each in walk.entries
        if each.type == "file"
    ]
    return reply(Files(files=entries))


async def get_block_file(request: web.Request) -> web.StreamResponse:
    """Send a file of a session's home."""
    ctx, who, kernel_id = context(request), principal(request), await _kernel_id(request)
    path = request.query.get("path")
    if not path:
        raise BadRequest("The query parameter path is missing.", reason="path")
    with ctx.files.transfer(who):
        async with AsyncExitStack() as held:
            with _confined():
                file = await held.enter_async_context(ctx.files.reading(who, kernel_id, path))
            response = web.StreamResponse()
            describe(response, file.facts)
            response.content_length = file.facts.size
            await response.prepare(request)
            async for piece in pieces_of(file, 0, file.facts.size):
                await response.write(piece)
    return response


async def put_block_file(request: web.Request) -> web.Response:
    """Write a file of a form into a session's home, at `path` or under its own name."""
    ctx, who, kernel_id = context(request), principal(request), await _kernel_id(request)
    if request.content_type != "multipart/form-data":
        raise BadRequest("The body is a form with a part called file.", reason="form")
    form, path = await request.multipart(), None
    while (part := await form.next()) is not None:
        if not isinstance(part, BodyPartReader) or part.name not in {"file", "path"}:
            raise BadRequest("A form's parts are called path and file.", reason="form")
        pieces = pieces_of_part(request, part)
        if part.name == "path":
            path = await _text(pieces)
            continue
        target = path or (part.filename or "").rpartition("/")[2]
        with _confined():
            written = await ctx.files.write(who, kernel_id, target, pieces, Expected())
        return reply(Stored(path=written.facts.path, size_bytes=written.facts.size), status=201)
    raise BadRequest("The form holds no file, or has its path after it.", reason="form")


async def _opened(request: web.Request, name: str, wanted: NewSession) -> Limits:
    """Make a session with what it asks for, as far as that is less than the profile's limits."""
    hints = {"idle_timeout_s": wanted.idle_timeout_seconds, "max_lifetime_s": wanted.max_lifetime_seconds}
    asked = {limit: seconds for limit, seconds in hints.items() if seconds is not None}
    for limits in (asked, *({limit: seconds} for limit, seconds in asked.items())):
        try:
            options = KernelOptions(limits=limits)
            return (await context(request).contexts.open(principal(request), name, options)).limits
        except BadRequest as error:
            if error.reason != "limits":
                raise
    return (await context(request).contexts.open(principal(request), name, KernelOptions())).limits


async def _kernel_id(request: web.Request) -> str:
    return (await context(request).contexts.get(principal(request), request.match_info["name"])).kernel_id


async def _text(pieces: AsyncIterator[bytes]) -> str:
    taken = b""
    async for piece in pieces:
        taken += piece
        if len(taken) > MAX_PATH_BYTES:
            raise BadRequest("The path is too long.", reason="path")
    return os.fsdecode(taken)


@contextmanager
def _confined() -> Iterator[None]:
    """Refuse a path that leads out of the home as the contract has it."""
    try:
        yield
    except BadRequest as error:
        raise Forbidden(error.message, reason="path") from error


_route = partial(Route, access=PRINCIPAL, tag="blocks")
BLOCK_ROUTES: tuple[Route, ...] = (
    _route(
        "POST",
        f"{PREFIX}/sessions",
        lease_session,
        summary="Lease a session for tool calls that are answered with result blocks.",
        responses={201: Session},
        body=NewSession,
    ),
    _route(
        "DELETE",
        f"{PREFIX}/sessions/{{name}}",
        release_session,
        summary="Release a session.",
        responses={204: None},
    ),
    _route(
        "POST",
        f"{PREFIX}/sessions/{{name}}/exec",
        run_block_tool,
        summary="Run code, a command or an editor's command in a session.",
        responses={200: Answer},
        body=AnyCall,
    ),
    _route(
        "GET",
        f"{PREFIX}/sessions/{{name}}/files/list",
        list_block_files,
        summary="List a directory of a session's home.",
        responses={200: Files},
        query={"path": "The directory; the home itself when left out."},
    ),
    _route(
        "GET",
        f"{PREFIX}/sessions/{{name}}/files",
        get_block_file,
        summary="Send a file of a session's home.",
        responses={200: "application/octet-stream"},
        query={"path": "The file."},
    ),
    _route(
        "POST",
        f"{PREFIX}/sessions/{{name}}/files",
        put_block_file,
        summary="Write a file of a form into a session's home.",
        responses={201: Stored},
    ),
)
