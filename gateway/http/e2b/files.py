"""Files of a sandbox's home, up and down, as E2B's SDKs send them."""

from __future__ import annotations

import asyncio
import re
import zlib
from typing import TYPE_CHECKING

from aiohttp import BodyPartReader, hdrs, web

from gateway.errors import BadRequest, RequestTimeout
from gateway.http.context import context, principal
from gateway.http.e2b.code import named
from gateway.http.e2b.paths import in_home, shown
from gateway.http.files import body_of, describe
from gateway.http.forms import pieces_of_part
from gateway.models import Scope
from gateway.services.files import PIECE, Expected, pieces_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from gateway.models import FileFacts

# Files of one upload.
MOST_FILES = 1000
# aiohttp's own reading of it takes a path's first slash away
FILE_NAME = re.compile(r';\s*filename="([^"]*)"')


async def download_file(request: web.Request) -> web.StreamResponse:
    """Send a file."""
    ctx, who = context(request), principal(request)
    path = in_home(request.query.get("path", ""))
    kernel_id = await first_kernel(request)
    with ctx.files.transfer(who):
        async with ctx.files.reading(who, kernel_id, path) as file:
            response = web.StreamResponse()
            describe(response, file.facts)
            response.content_length = file.facts.size
            await response.prepare(request)
            sent = 0
            async for piece in pieces_of(file, 0, file.facts.size):
                await response.write(piece)
                sent += len(piece)
            if sent < file.facts.size and request.transport is not None:
                # it became shorter: what was promised cannot come, and the client must see that
                request.transport.abort()
            return response


async def upload_files(request: web.Request) -> web.Response:
    """Write files, each whole or not at all: one as the body, or several as parts of a form."""
    path = request.query.get("path")
    if request.content_type != "multipart/form-data":
        if not path:
            raise BadRequest("The query parameter path is missing.", reason="path")
        return web.json_response([await _write(request, path, _plain(request))])
    written: list[dict[str, str]] = []
    async for part in _parts(request):
        if part.name != "file":
            raise BadRequest("A form's parts are all called file.", reason="form")
        if len(written) >= MOST_FILES:
            raise BadRequest(f"More than {MOST_FILES} files at once.", reason="form")
        if path and written:
            raise BadRequest("The query parameter path is for one file.", reason="path")
        target = path or file_name(part.headers.get(hdrs.CONTENT_DISPOSITION, ""))
        if not target:
            raise BadRequest("A part of the form has no file name.", reason="form")
        written.append(await _write(request, target, pieces_of_part(request, part)))
    if not written:
        raise BadRequest("The form holds no file.", reason="form")
    return web.json_response(written)


def file_name(disposition: str) -> str | None:
    """Return the file name that a part of a form has, as browsers, and the SDKs with them, write it."""
    found = FILE_NAME.search(disposition)
    if found is None:
        return None
    return found[1].replace("%22", '"').replace("%0D", "\r").replace("%0A", "\n")


async def first_kernel(request: web.Request, scope: Scope = Scope.FILES) -> str:
    """Return the kernel by whose cell a sandbox's files and commands are reached, revived if need be."""
    first = named(request).record.contexts[0].id
    await context(request).e2b.code.revived(principal(request), first, scope)
    return first


async def _parts(request: web.Request) -> AsyncIterator[BodyPartReader]:
    """Yield the parts of a form as they come. Raises BadRequest, RequestTimeout."""
    try:
        form = await request.multipart()
        while True:
            async with asyncio.timeout(context(request).settings.server.body_timeout_s):
                part = await form.next()
            if part is None:
                return
            if not isinstance(part, BodyPartReader):
                raise BadRequest("A form's parts hold no forms.", reason="form")
            yield part
    except TimeoutError as error:
        raise RequestTimeout("The body arrives too slowly (server.body_timeout_s).") from error
    except (ValueError, AssertionError, web.RequestPayloadError) as error:
        raise BadRequest("The form does not arrive as its headers say.") from error


async def _write(request: web.Request, path: str, pieces: AsyncIterator[bytes]) -> dict[str, str]:
    facts: FileFacts = (
        await context(request).files.write(
            principal(request), await first_kernel(request), in_home(path), pieces, Expected()
        )
    ).facts
    return {"name": facts.path.rpartition("/")[2], "path": shown(facts.path), "type": "file"}


async def _plain(request: web.Request) -> AsyncIterator[bytes]:
    """Yield a body as it comes, and what was compressed without that. Raises BadRequest, RequestTimeout."""
    encoding = request.headers.get(hdrs.CONTENT_ENCODING, "identity").lower()
    if encoding == "identity":
        async for piece in body_of(request):
            yield piece
        return
    if encoding != "gzip":
        raise BadRequest("Bodies are compressed by gzip, or not at all.", reason="content_encoding")
    inflating = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
    try:
        async for piece in body_of(request):
            rest = piece
            # a little at a time: a small body may hold much more than a file here may be
            while rest and not inflating.eof:
                yield inflating.decompress(rest, PIECE)
                rest = inflating.unconsumed_tail
    except zlib.error as error:
        raise BadRequest("The body is not what gzip makes.", reason="content_encoding") from error
    if not inflating.eof:
        raise BadRequest("The body ends too soon.", reason="content_encoding")
