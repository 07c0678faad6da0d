"""Connect's frames, with JSON in them: a byte of flags, four of length, and the message."""

from __future__ import annotations

import asyncio
import struct
from typing import TYPE_CHECKING, Any, TypeVar

import orjson
from pydantic import BaseModel, ValidationError

from gateway.errors import BadRequest, PayloadTooLarge, RequestTimeout
from gateway.http.context import context

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from aiohttp import web

M = TypeVar("M", bound=BaseModel)

END, COMPRESSED = 2, 1
HEAD = struct.Struct(">BI")
TIMEOUT = "Connect-Timeout-Ms"


def envelope(message: bytes, flags: int = 0) -> bytes:
    """Return a message in its frame."""
    return HEAD.pack(flags, len(message)) + message


def event(content: dict[str, Any]) -> bytes:
    """Return a JSON object in its frame."""
    return envelope(orjson.dumps(content))


def ending() -> bytes:
    """Return the frame that ends a stream which went well."""
    return envelope(b"{}", END)


async def messages(request: web.Request, model: type[M], *, idle_s: float | None = None) -> AsyncIterator[M]:
    """Yield the messages of a request's stream, each checked; no larger than `server.max_body_bytes`.

    `idle_s` bounds the wait for each, `server.body_timeout_s` unless it is given.

    Raises BadRequest, PayloadTooLarge, RequestTimeout.
    """
    settings = context(request).settings.server
    while True:
        try:
            async with asyncio.timeout(settings.body_timeout_s if idle_s is None else idle_s):
                head = await request.content.readexactly(HEAD.size)
                flags, length = HEAD.unpack(head)
                if length > settings.max_body_bytes:
                    raise PayloadTooLarge(f"A message is larger than {settings.max_body_bytes} bytes.")
                data = await request.content.readexactly(length)
        except asyncio.IncompleteReadError as error:
            if error.partial:
                raise BadRequest("The stream ends in the middle of a message.") from error
            return
        except TimeoutError as error:
            raise RequestTimeout("The next message did not come in time.") from error
        if flags & COMPRESSED:
            raise BadRequest("Compressed messages are not taken.", reason="compression")
        if flags & END:
            return
        yield checked(data, model)


async def message(request: web.Request, model: type[M]) -> M:
    """Return the one message of a request's stream. Raises BadRequest, PayloadTooLarge, RequestTimeout."""
    async for found in messages(request, model):
        return found
    raise BadRequest("The request holds no message.")


def checked(data: bytes, model: type[M]) -> M:
    """Return a message as a model. Raises BadRequest, naming the first field that is wrong."""
    try:
        return model.model_validate(orjson.loads(data or b"{}"))
    except orjson.JSONDecodeError as error:
        raise BadRequest("The message is not JSON.", reason=str(error)) from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise BadRequest(f"The field {place} is wrong: {first['msg']}.", reason=place) from None


def deadline_s(request: web.Request) -> float | None:
    """Return how many seconds the caller gives a call, if it says so. Raises BadRequest."""
    given = request.headers.get(TIMEOUT)
    if given is None:
        return None
    if not (given.isascii() and given.isdigit() and len(given) <= 10):
        raise BadRequest(f"{TIMEOUT} is a number of milliseconds.", reason="timeout")
    return int(given) / 1000
