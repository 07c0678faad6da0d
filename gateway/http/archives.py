"""Archives of a kernel's home over REST: a directory in one download, or one upload."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

from aiohttp import hdrs, web

from gateway.errors import BadRequest
from gateway.http.access import owner
from gateway.http.context import context, principal, reply
from gateway.http.file_views import UnpackedView
from gateway.http.files import body_of, check_length
from gateway.http.route import Route
from gateway.models import Scope

if TYPE_CHECKING:
    from gateway.services.unpacking import Format

TYPES = {"tar.gz": "application/gzip", "zip": "application/zip"}


async def download_archive(request: web.Request) -> web.StreamResponse:
    """Send a directory's files as an archive."""
    ctx, who, kernel_id = context(request), principal(request), request.match_info["kernel_id"]
    kind, path = kind_of(request), request.query.get("path", "")
    with ctx.files.transfer(who):
        contents = await ctx.archives.contents(who, kernel_id, path)
        response = web.StreamResponse(headers={hdrs.CONTENT_TYPE: TYPES[kind]})
        name = quote(path.strip("/").rpartition("/")[2] or "home", safe="")
        response.headers[hdrs.CONTENT_DISPOSITION] = f"attachment; filename*=UTF-8''{name}.{kind}"
        await response.prepare(request)
        async for piece in ctx.archives.pack(who, kernel_id, path, contents, kind):
            if piece:
                await response.write(piece)
        return response


async def upload_archive(request: web.Request) -> web.Response:
    """Unpack an archive into a directory."""
    ctx, who, kernel_id = context(request), principal(request), request.match_info["kernel_id"]
    kind, path = kind_of(request), request.query.get("path", ".")
    check_length(request, ctx.files.max_bytes(who, kernel_id))
    unpacked = await ctx.archives.unpack(who, kernel_id, path, kind, body_of(request))
    return reply(
        UnpackedView(files=unpacked.files, directories=unpacked.directories, size=unpacked.size), status=201
    )


def kind_of(request: web.Request) -> Format:
    """Return which archive is asked for. Raises BadRequest."""
    match request.query.get("format", "tar.gz"):
        case "tar.gz":
            return "tar.gz"
        case "zip":
            return "zip"
        case _:
            raise BadRequest("The query parameter format is tar.gz or zip.", reason="format")


ARCHIVE_ROUTES: tuple[Route, ...] = (
    Route(
        "GET",
        "/api/kernels/{kernel_id}/files-archive",
        download_archive,
        owner("kernel_id", Scope.FILES),
        "Download a directory of a kernel's home as an archive.",
        {200: "application/gzip, application/zip"},
        "files",
        query={"path": "The directory; the home itself when left out.", "format": "tar.gz or zip."},
    ),
    Route(
        "POST",
        "/api/kernels/{kernel_id}/files-archive",
        upload_archive,
        owner("kernel_id", Scope.FILES),
        "Unpack an archive into a directory of a kernel's home.",
        {201: UnpackedView},
        "files",
        query={"path": "The directory; the home itself when left out.", "format": "tar.gz or zip."},
    ),
)
