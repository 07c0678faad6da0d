"""Parts of multipart forms, as they come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from aiohttp import hdrs, web

from gateway.errors import BadRequest, RequestTimeout
from gateway.http.context import context
from gateway.http.files import SLOWEST_BYTES_S
from gateway.services.files import PIECE

if TYPE_CHECKING:
    from aiohttp import BodyPartReader


async def pieces_of_part(request: web.Request, part: BodyPartReader) -> AsyncIterator[bytes]:
    """Yield a part of a form in pieces of a good size. Raises BadRequest, RequestTimeout."""
    if part.headers.get(hdrs.CONTENT_ENCODING, "identity").lower() != "identity":
        raise BadRequest("Compressed parts are not taken.", reason="content_encoding")
    loop, taken = asyncio.get_running_loop(), 0
    latest = loop.time() + context(request).settings.server.body_timeout_s
    try:
        while True:
            async with asyncio.timeout_at(latest + taken / SLOWEST_BYTES_S):
                piece = await part.read_chunk(PIECE)
            if not piece:
                return
            taken += len(piece)
            yield piece
    except TimeoutError as error:
        raise RequestTimeout("The body arrives too slowly (server.body_timeout_s).") from error
    except (ValueError, web.RequestPayloadError) as error:
        raise BadRequest("The form does not arrive as its headers say.") from error
