"""What every request goes through: its id and log line, errors as JSON, origin, credential and ownership."""

from __future__ import annotations

import math
import re
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from uuid import uuid4

import structlog
from aiohttp import hdrs, web

from gateway.auth import presented
from gateway.errors import GatewayError, HeadersTooLarge, LimitReached, ShuttingDown, Unauthorized
from gateway.http.access import Rule
from gateway.http.context import (
    CONTEXT,
    PRINCIPAL,
    REQUEST_ID,
    TRACEPARENT,
    Context,
    address,
    origin,
    rate_headers,
)
from gateway.http.mcp import challenge
from gateway.http.origins import Origins
from gateway.http.route import Route
from gateway.http.witness import REFUSALS, failing
from gateway.models import AuditAction, AuditEvent, Door
from gateway.origin import acting
from gateway.ports.tracing import Span

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

ROUTE_OF = web.AppKey("ROUTE_OF", dict[web.AbstractRoute, Route])
ORIGINS = web.AppKey("ORIGINS", Origins)
GIVEN_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
CODES = {
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    413: "payload_too_large",
}
POLICY = "default-src 'none'; frame-ancestors 'self'"

log = structlog.get_logger(__name__)


@web.middleware
async def identify(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Give the request an id, bind it into every log line, and write the access line: never the query."""
    given = request.headers.get("X-Request-Id", "")
    request[REQUEST_ID] = given if GIVEN_ID.fullmatch(given) else uuid4().hex
    ctx, route = request.app[CONTEXT], request.app[ROUTE_OF].get(request.match_info.route)
    clock, labels = ctx.clock, (route.path, route.method) if route else ("none", "none")
    began = clock.monotonic()
    ctx.metrics.door_requests.labels(route.door if route else "rest").inc()
    with ctx.tracer.request(f"{labels[1]} {labels[0]}", request.headers) as span, bound(request, span):
        response = await handler(request)
        ctx.metrics.requests.labels(*labels, str(response.status)).inc()
        span.note({"http.response.status_code": response.status})
        if response.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            span.fail(str(response.status))
        who = request.get(PRINCIPAL)
        log.info(
            "request",
            method=request.method,
            path=request.rel_url.raw_path,
            status=response.status,
            duration_s=round(clock.monotonic() - began, 6),
            principal=who and who.name,
        )
        return response


@contextmanager
def bound(request: web.Request, span: Span) -> Iterator[None]:
    """Put a request's names into its log lines and its span: from one of them the other is found."""
    request[TRACEPARENT] = span.traceparent
    names = {"request_id": request[REQUEST_ID]}
    span.note({"cellblock.request_id": request[REQUEST_ID], "http.request.method": request.method})
    if span.trace_id is not None:
        names["trace_id"] = span.trace_id
    with structlog.contextvars.bound_contextvars(**names):
        yield


@web.middleware
async def answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn everything that is raised into the one JSON shape of errors."""
    try:
        return await handler(request)
    except GatewayError as error:
        if error.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            log.warning("request_failed", code=error.code, message=error.message, reason=error.reason)
        _note(request, error)
        request.app[CONTEXT].metrics.refused(error)
        return _failure(request, error)
    except web.HTTPException as error:
        request.app[CONTEXT].metrics.refusals.labels(_code(error)).inc()
        return _refusal(request, error)
    except Exception:  # the last resort of the whole door: said in the log, and nothing of it to the client
        log.exception("request_crashed")
        failure = GatewayError("The gateway failed in an unexpected way; its log says more.")
        _note(request, failure)
        request.app[CONTEXT].metrics.refused(failure)
        return _failure(request, failure)


@web.middleware
async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Let through what comes from a known place, with a good credential, to something of its own."""
    ctx, origins = request.app[CONTEXT], request.app[ORIGINS]
    check_head(request, ctx.settings.server.max_header_bytes)
    origins.check_host(request)
    if request.method == hdrs.METH_OPTIONS:
        return origins.preflight()
    if request.match_info.http_exception is not None:
        raise request.match_info.http_exception
    route = request.app[ROUTE_OF][request.match_info.route]
    if route.access.rule is Rule.PUBLIC:
        return await handler(request)
    await _authenticate(request, ctx, origins)
    with acting(origin(request, route.door)):
        if ctx.sockets.draining and (route.changes or route.upgrades):
            raise ShuttingDown("The gateway is shutting down.", retry_after_s=ctx.settings.server.drain_s)
        route.access.check(request, request[PRINCIPAL])
        response = await handler(request)
    if route.changes:
        # what is acknowledged is recorded
        await ctx.audit.written()
    return response


def check_head(request: web.Request, most: int) -> None:
    """Refuse a head that is larger than it may be. Raises HeadersTooLarge."""
    size = len(request.raw_path) + sum(len(name) + len(value) + 4 for name, value in request.raw_headers)
    if size > most:
        raise HeadersTooLarge(f"The headers are larger than {most} bytes (server.max_header_bytes).")


async def protect(request: web.Request, response: web.StreamResponse) -> None:
    """Add the headers that every answer carries; a handler's own choice stands."""
    headers = response.headers
    if REQUEST_ID in request:
        headers["X-Request-Id"] = request[REQUEST_ID]
    headers["Server"] = "cellblock"
    headers.setdefault("X-Content-Type-Options", "nosniff")
    headers.setdefault("Content-Security-Policy", POLICY)
    headers.setdefault("Referrer-Policy", "no-referrer")
    headers.setdefault("Cache-Control", "no-store")
    if request.secure:
        headers["Strict-Transport-Security"] = "max-age=31536000"
    for cookie in response.cookies.values():
        # whoever sets one
        cookie["httponly"], cookie["samesite"], cookie["secure"] = True, "Strict", request.secure
    headers.update(request.app[ORIGINS].headers(request))


async def _authenticate(request: web.Request, ctx: Context, origins: Origins) -> None:
    """Put the principal behind the presented credential into the request. Raises Unauthorized, Forbidden."""
    route = request.app[ROUTE_OF][request.match_info.route]
    if route.credential is not None:
        origins.check_origin(request, by_cookie=False)
        request[PRINCIPAL] = await route.credential(request)
        return
    token = presented(request.headers, request.query, {})
    by_cookie = token is None
    if by_cookie:
        token = presented({}, {}, request.cookies)
    # MCP's own rule
    origins.check_origin(request, by_cookie=by_cookie, always=_door(request) == "mcp")
    if not token:
        raise Unauthorized("A credential is needed: Authorization: Bearer <key>, ?token=<key>, or a cookie.")
    request[PRINCIPAL] = await ctx.authenticator.authenticate(token)


def _door(request: web.Request) -> Door:
    route = request.app[ROUTE_OF].get(request.match_info.route)
    return route.door if route else "rest"


def _note(request: web.Request, error: GatewayError) -> None:
    """Record that somebody was refused, and any request to change something that came to nothing."""
    ctx, route = request.app[CONTEXT], request.app[ROUTE_OF].get(request.match_info.route)
    changes = route is not None and route.changes
    not_theirs = route is not None and route.access.rule is Rule.OWNER
    refused = error.status in REFUSALS and (error.status != HTTPStatus.NOT_FOUND or not_theirs)
    if error.recorded or not (refused or changes):
        return
    who = request.get(PRINCIPAL)
    event = failing(
        AuditEvent(
            action=AuditAction.REQUEST_FAILED,
            who=who and who.name,
            key_id=who and who.key_id,
            address=address(request),
            door=route.door if route else "rest",
            request_id=request[REQUEST_ID],
            kernel_id=request.match_info.get("kernel_id"),
            target=f"{request.method} {route.path if route else request.rel_url.raw_path}",
        ),
        error,
    )
    ctx.audit.record(event)


def _failure(request: web.Request, error: GatewayError) -> web.Response:
    route = request.app[ROUTE_OF].get(request.match_info.route)
    if route is not None and route.errors is not None:
        response = route.errors(request, error)
    else:
        response = web.json_response(error.body(), status=error.status)
    if error.retry_after_s is not None:
        response.headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
    if isinstance(error, LimitReached) and error.allowance is not None:
        response.headers.update(rate_headers(error.allowance))
    if error.status == HTTPStatus.UNAUTHORIZED:
        by_mcp = _door(request) == "mcp"
        response.headers["WWW-Authenticate"] = challenge(request) if by_mcp else "Bearer"
    return response


def _refusal(request: web.Request, error: web.HTTPException) -> web.Response:
    """Answer what aiohttp refuses: no such route, no such method, a malformed request."""
    body = {
        "message": f"{error.reason}: {request.method} {request.rel_url.raw_path}",
        "reason": None,
        "code": _code(error),
    }
    response = web.json_response(body, status=error.status)
    if hdrs.ALLOW in error.headers:
        response.headers[hdrs.ALLOW] = error.headers[hdrs.ALLOW]
    return response


def _code(error: web.HTTPException) -> str:
    return CODES.get(error.status, "bad_request" if error.status < 500 else "internal_error")
