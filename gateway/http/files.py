"""Files of a kernel's home over REST: list, read, write, change, remove."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from email.utils import formatdate
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote_to_bytes

from aiohttp import hdrs, web

from gateway.errors import BadRequest, PayloadTooLarge, RangeNotSatisfiable, RequestTimeout
from gateway.http.access import owner
from gateway.http.bodies import read_model
from gateway.http.context import context, principal, reply
from gateway.http.file_views import FileChange, FileList, FileView
from gateway.http.route import Route
from gateway.models import FileFacts, Scope
from gateway.services.files import PIECE, Expected, pieces_of

if TYPE_CHECKING:
    from gateway.services.files import Written

SHA256 = re.compile(r"[0-9a-fA-F]{64}")
RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")
MAX_DEPTH = 64
SLOWEST_BYTES_S = 64 << 10  # of an upload, once its time is over


def path_of(request: web.Request) -> str:
    """Return the path that a route ends with: its bytes, whatever they are, as `os.fsdecode` has them."""
    before, _, raw = request.rel_url.raw_path.partition("/files/")
    return os.fsdecode(unquote_to_bytes(raw)) if before else ""


async def list_files(request: web.Request) -> web.Response:
    """List a directory of the home."""
    query = request.query
    depth = MAX_DEPTH if flag(request, "recursive") else 1
    found = await context(request).files.walk(
        principal(request),
        request.match_info["kernel_id"],
        query.get("path", ""),
        depth=depth,
        limit=number(query.get("limit"), "limit"),
    )
    return reply(FileList(files=[FileView.of(facts) for facts in found.entries], truncated=found.truncated))


async def read_file(request: web.Request) -> web.StreamResponse:
    """Send a file, or a part of it; without its bytes for HEAD."""
    ctx, who, kernel_id = context(request), principal(request), request.match_info["kernel_id"]
    async with AsyncExitStack() as held:
        held.enter_context(ctx.files.transfer(who))
        file = await held.enter_async_context(ctx.files.reading(who, kernel_id, path_of(request)))
        facts = file.facts
        start, end = wanted_range(request, facts)
        response = web.StreamResponse(status=200 if end - start == facts.size else 206)
        describe(response, facts)
        response.content_length = end - start
        if response.status == 206:
            response.headers[hdrs.CONTENT_RANGE] = f"bytes {start}-{end - 1}/{facts.size}"
        if matches(request.headers.get(hdrs.IF_NONE_MATCH), facts):
            response = web.StreamResponse(status=304)
            describe(response, facts)
        await response.prepare(request)
        if request.method == hdrs.METH_HEAD or response.status == 304:
            return response
        sent = 0
        async for piece in pieces_of(file, start, end):
            await response.write(piece)
            sent += len(piece)
        if sent < end - start and request.transport is not None:
            # it became shorter: what was promised cannot come, and the client must see that
            request.transport.abort()
        return response


async def write_file(request: web.Request) -> web.Response:
    """Write a file as a whole."""
    ctx, who, kernel_id = context(request), principal(request), request.match_info["kernel_id"]
    check_length(request, ctx.files.max_bytes(who, kernel_id))
    written = await ctx.files.write(who, kernel_id, path_of(request), body_of(request), expected(request))
    return shown(written)


async def change_file(request: web.Request) -> web.Response:
    """Append to a file, edit it, move it, or make a directory."""
    ctx, who, kernel_id = context(request), principal(request), request.match_info["kernel_id"]
    path = path_of(request)
    change = await read_model(request, FileChange)
    match change.op:
        case "append":
            facts = await ctx.files.append(who, kernel_id, path, encoded(change.text, "text"))
            return shown(facts)
        case "edit":
            old, new = encoded(change.old, "old"), encoded(change.new, "new")
            return shown(
                await ctx.files.edit(
                    who, kernel_id, path, old, new, replacements=change.expected_replacements
                )
            )
        case "mkdir":
            return shown(await ctx.files.mkdir(who, kernel_id, path), status=201)
        case "move":
            if not change.to:
                raise BadRequest("The field to is missing.", reason="to")
            return shown(await ctx.files.move(who, kernel_id, path, change.to, replace=change.replace))


async def delete_file(request: web.Request) -> web.Response:
    """Remove a file or directory."""
    await context(request).files.remove(
        principal(request),
        request.match_info["kernel_id"],
        path_of(request),
        recursive=flag(request, "recursive"),
    )
    return web.Response(status=204)


def describe(response: web.StreamResponse, facts: FileFacts) -> None:
    """Set what is said of a file's content: nothing that a browser would run, whatever the content is."""
    response.content_type = "application/octet-stream"
    name = facts.path.rpartition("/")[2]
    response.headers[hdrs.CONTENT_DISPOSITION] = (
        f"attachment; filename*=UTF-8''{quote(os.fsencode(name), safe='')}"
    )
    response.headers[hdrs.ETAG] = f'"{facts.version}"'
    response.headers[hdrs.ACCEPT_RANGES] = "bytes"
    response.headers[hdrs.LAST_MODIFIED] = http_date(facts)


def http_date(facts: FileFacts) -> str:
    """Return a file's time as HTTP writes it; a process of the kernel's may have set any time at all."""
    try:
        return formatdate(facts.modified_ns // 10**9, usegmt=True)
    except (OverflowError, ValueError, OSError):
        return formatdate(0, usegmt=True)


def wanted_range(request: web.Request, facts: FileFacts) -> tuple[int, int]:
    """Return which bytes to send: all where no single range is asked for. Raises RangeNotSatisfiable."""
    given = request.headers.get(hdrs.RANGE)
    if given is None or not matches(request.headers.get(hdrs.IF_RANGE, "*"), facts):
        return 0, facts.size
    found = RANGE.fullmatch(given.strip())
    if found is None or found.group() == "bytes=-":
        return 0, facts.size
    first, last = found.groups()
    if first:
        start, end = int(first), min(int(last) + 1 if last else facts.size, facts.size)
    else:
        start, end = max(0, facts.size - int(last)), facts.size
    if start >= end:
        raise RangeNotSatisfiable(f"The file has {facts.size} bytes.")
    return start, end


def matches(given: str | None, facts: FileFacts) -> bool:
    """Tell whether one of the entity tags in a header is the file's."""
    if given is None:
        return False
    tags = {tag.strip().removeprefix("W/") for tag in given.split(",")}
    return bool(tags & {"*", f'"{facts.version}"'})


def expected(request: web.Request) -> Expected:
    """Return what the request says of the file as it is now. Raises BadRequest."""
    headers = request.headers
    version, none = headers.get(hdrs.IF_MATCH), headers.get(hdrs.IF_NONE_MATCH)
    sha256 = headers.get("X-Expected-Sha256")
    if none not in {None, "*"}:
        raise BadRequest("If-None-Match takes * here.", reason="if_none_match")
    if version is not None and version != "*" and not re.fullmatch(r'"[0-9a-f-]{1,80}"', version):
        raise BadRequest("If-Match takes one entity tag of a file, or *.", reason="if_match")
    if sha256 is not None and not SHA256.fullmatch(sha256):
        raise BadRequest("X-Expected-Sha256 takes 64 hexadecimal digits.", reason="sha256")
    return Expected(version and version.strip('"'), sha256, absent=none == "*")


def check_length(request: web.Request, most: int) -> None:
    """Refuse a body that says that it is too large, before any of it is read. Raises PayloadTooLarge."""
    if request.headers.get(hdrs.CONTENT_ENCODING, "identity").lower() != "identity":
        raise BadRequest("Compressed bodies are not taken.", reason="content_encoding")
    if request.content_length is not None and request.content_length > most:
        raise PayloadTooLarge(f"The body is larger than the {most} bytes that are taken here.")


async def body_of(request: web.Request) -> AsyncIterator[bytes]:
    """Yield the body as it comes, in pieces of a good size. Raises BadRequest, RequestTimeout."""
    loop, taken = asyncio.get_running_loop(), 0
    latest = loop.time() + context(request).settings.server.body_timeout_s
    try:
        while True:
            async with asyncio.timeout_at(latest + taken / SLOWEST_BYTES_S):
                piece = await request.content.read(PIECE)
            if not piece:
                return
            taken += len(piece)
            yield piece
    except TimeoutError as error:
        raise RequestTimeout("The body arrives too slowly (server.body_timeout_s).") from error
    except web.RequestPayloadError as error:
        raise BadRequest("The body does not arrive as its headers say.") from error


def encoded(text: str | None, name: str) -> bytes:
    """Return a text's bytes. Raises BadRequest for none, and for what is no text."""
    if text is None:
        raise BadRequest(f"The field {name} is missing.", reason=name)
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise BadRequest(f"The field {name} is not text.", reason=name) from error


def flag(request: web.Request, name: str) -> bool:
    """Return a query parameter that is true or false. Raises BadRequest."""
    given = request.query.get(name, "false").lower()
    if given not in {"true", "false", "1", "0"}:
        raise BadRequest(f"The query parameter {name} is true or false.", reason=name)
    return given in {"true", "1"}


def number(given: str | None, name: str) -> int | None:
    """Return a query parameter that is a positive number. Raises BadRequest."""
    if given is None:
        return None
    if not re.fullmatch(r"[1-9][0-9]{0,8}", given):
        raise BadRequest(f"The query parameter {name} is a positive number.", reason=name)
    return int(given)


def shown(what: FileFacts | Written, *, status: int = 200) -> web.Response:
    """Answer with what a file is now, and its entity tag."""
    if isinstance(what, FileFacts):
        view, facts = FileView.of(what), what
    else:
        view, facts = FileView.of(what.facts, sha256=what.sha256), what.facts
        status = 201 if what.created else status
    response = reply(view, status=status)
    response.headers[hdrs.ETAG] = f'"{facts.version}"'
    return response


FILE_ROUTES: tuple[Route, ...] = (
    Route(
        "GET",
        "/api/kernels/{kernel_id}/files",
        list_files,
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
    *(
        Route(
            method,
            "/api/kernels/{kernel_id}/files/{path}",
            read_file,
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
        write_file,
        owner("kernel_id", Scope.FILES),
        "Write a file of a kernel's home: whole, or not at all.",
        {200: FileView, 201: FileView},
        "files",
    ),
    Route(
        "POST",
        "/api/kernels/{kernel_id}/files/{path}",
        change_file,
        owner("kernel_id", Scope.FILES),
        "Append to a file, edit it, move it, or make a directory.",
        {200: FileView, 201: FileView},
        "files",
        body=FileChange,
    ),
    Route(
        "DELETE",
        "/api/kernels/{kernel_id}/files/{path}",
        delete_file,
        owner("kernel_id", Scope.FILES),
        "Remove a file or a directory.",
        {204: None},
        "files",
        query={"recursive": "true removes a directory with all that is in it."},
    ),
)
