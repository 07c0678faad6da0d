"""Reads JSON bodies with the tolerance that Jupyter's clients need, and no more."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, TypeVar

import orjson
from aiohttp import hdrs, web
from pydantic import BaseModel, ValidationError

from gateway.errors import BadRequest, PayloadTooLarge, RequestTimeout
from gateway.http.context import context

M = TypeVar("M", bound=BaseModel)


async def read_body(request: web.Request) -> bytes:
    """Return the body as it came; its size is bounded by the application.

    Raises BadRequest when it is compressed or broken off, PayloadTooLarge past `server.max_body_bytes`,
    RequestTimeout past `server.body_timeout_s`.
    """
    if request.headers.get(hdrs.CONTENT_ENCODING, "identity").lower() != "identity":
        raise BadRequest("Compressed bodies are not taken.", reason="content_encoding")
    timeout_s = context(request).settings.server.body_timeout_s
    try:
        async with asyncio.timeout(timeout_s):
            return await request.read()
    except TimeoutError as error:
        raise RequestTimeout(
            f"The body did not arrive within {timeout_s:g} s (server.body_timeout_s)."
        ) from error
    except web.HTTPRequestEntityTooLarge as error:
        raise PayloadTooLarge(
            f"The body is larger than {request.client_max_size} bytes (server.max_body_bytes)."
        ) from error
    except web.RequestPayloadError as error:
        raise BadRequest("The body does not arrive as its headers say.") from error


async def read_object(request: web.Request) -> dict[str, Any] | None:
    """Return the body's JSON object, or None for an empty body or `null`; the Content-Type does not matter.

    Nesting is bounded by the parser (orjson refuses more than 1024 levels).

    Raises BadRequest when the body is no JSON object, and what `read_body` does.
    """
    raw = await read_body(request)
    if not raw.strip():
        return None
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise BadRequest("Invalid JSON in body of request", reason=str(error)) from error
    if body is None or isinstance(body, dict):
        return body
    raise BadRequest("Invalid JSON in body of request", reason="The body must be a JSON object.")


async def read_model(request: web.Request, model: type[M]) -> M:
    """Return the body as a model; an empty body is an empty object.

    Raises what read_object does, and BadRequest naming the first field that is missing, unknown or wrong.
    """
    return parsed(model, await read_object(request) or {})


def parsed(model: type[M], given: Mapping[str, Any]) -> M:
    """Return what a client gave as a model. Raises BadRequest, which names the first field that is wrong."""
    try:
        return model.model_validate(given)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise BadRequest(f"The field {place} is wrong: {first['msg']}.", reason=place) from None
