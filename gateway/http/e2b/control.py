"""E2B's API of sandboxes: make, list, look at, put off, pause and end them."""

from __future__ import annotations

import base64
import binascii
import math
import re
from datetime import datetime
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, unquote

from aiohttp import web

from gateway.errors import BadRequest, Conflict, GatewayError, NotOffered
from gateway.http.bodies import read_model
from gateway.http.context import context, principal, reply
from gateway.http.e2b.views import (
    CreatedSandbox,
    MetricView,
    MetricViews,
    NewSandbox,
    SandboxConnect,
    SandboxRefresh,
    SandboxTimeout,
    SandboxView,
    SandboxViews,
)
from gateway.models import Usage, timestamp

if TYPE_CHECKING:
    from gateway.services.sandbox_book import Sandbox

NEXT = "x-next-token"
MOST = 100
PLACE = re.compile(r"[0-9TZ:.-]{1,40} [0-9a-f]{20}")


async def create_sandbox(request: web.Request) -> web.Response:
    """Make a sandbox, with the kernel of its first context."""
    wanted = await read_model(request, NewSandbox)
    wanted.check()
    sandbox = await context(request).e2b.sandboxes.create(
        principal(request),
        template=wanted.template_id,
        timeout_s=wanted.timeout,
        metadata=wanted.metadata,
        env=wanted.env_vars,
    )
    return reply(_created(request, sandbox), status=201)


async def list_sandboxes(request: web.Request) -> web.Response:
    """List the caller's sandboxes: all that E2B's filters leave, some at a time."""
    query = request.query
    states = {state for state in query.get("state", "").split(",") if state}
    # the SDKs quote names and values before they encode them
    metadata = {unquote(k): unquote(v) for k, v in parse_qsl(query.get("metadata", ""))}
    found = [
        sandbox
        for sandbox in context(request).e2b.sandboxes.list(principal(request))
        if (not states or _state(sandbox) in states)
        and metadata.items() <= sandbox.record.metadata.items()
        and query.get("template", sandbox.record.template) == sandbox.record.template
    ]
    if after := query.get("startedAfter"):
        found = [sandbox for sandbox in found if sandbox.record.created_at > _moment(after)]
    if query.get("order", "desc") != "asc":
        found.reverse()
    page, token = _page(request, found)
    response = reply(SandboxViews([_view(request, sandbox) for sandbox in page]))
    if token:
        response.headers[NEXT] = token
    return response


async def get_sandbox(request: web.Request) -> web.Response:
    """Show a sandbox."""
    return reply(_view(request, _named(request)))


async def kill_sandbox(request: web.Request) -> web.Response:
    """End a sandbox with all that is in it."""
    await context(request).e2b.sandboxes.kill(principal(request), request.match_info["sandbox_id"])
    return web.Response(status=204)


async def set_sandbox_timeout(request: web.Request) -> web.Response:
    """Have a sandbox end in so many seconds."""
    wanted = await read_model(request, SandboxTimeout)
    await context(request).e2b.sandboxes.set_timeout(
        principal(request), request.match_info["sandbox_id"], wanted.timeout
    )
    return web.Response(status=204)


async def refresh_sandbox(request: web.Request) -> web.Response:
    """Put a sandbox's end off."""
    wanted = await read_model(request, SandboxRefresh)
    await context(request).e2b.sandboxes.connect(
        principal(request), request.match_info["sandbox_id"], timeout_s=wanted.duration
    )
    return web.Response(status=204)


async def pause_sandbox(request: web.Request) -> web.Response:
    """Freeze a sandbox; one that is paused already is 409, which the SDKs expect."""
    if not await context(request).e2b.sandboxes.pause(principal(request), request.match_info["sandbox_id"]):
        raise Conflict("The sandbox is paused already.", reason="paused")
    return web.Response(status=204)


async def connect_sandbox(request: web.Request) -> web.Response:
    """Come back to a sandbox, and let a paused one go on."""
    wanted = await read_model(request, SandboxConnect)
    sandbox = await context(request).e2b.sandboxes.connect(
        principal(request), request.match_info["sandbox_id"], timeout_s=wanted.timeout
    )
    return reply(_created(request, sandbox))


async def resume_sandbox(request: web.Request) -> web.Response:
    """Let a paused sandbox go on."""
    wanted = await read_model(request, SandboxConnect)
    if not _named(request).record.paused:
        raise Conflict("The sandbox is not paused.", reason="not_paused")
    sandbox = await context(request).e2b.sandboxes.connect(
        principal(request), request.match_info["sandbox_id"], timeout_s=wanted.timeout
    )
    return reply(_created(request, sandbox), status=201)


async def sandbox_metrics(request: web.Request) -> web.Response:
    """Show what a sandbox uses now."""
    ctx, sandbox = context(request), _named(request)
    limits = None
    cpu_s, memory, disk = 0.0, 0, 0
    for held in sandbox.record.contexts:
        handle = ctx.e2b.sandboxes.kernel(held.id)
        if handle is None:
            continue
        limits = limits or handle.limits
        try:
            used: Usage = await handle.usage()
        except GatewayError:
            continue
        cpu_s, memory = cpu_s + used.cpu_s, memory + used.memory_bytes
        # they share one home
        disk = max(disk, used.home_bytes or 0)
    now = ctx.clock.now()
    age_s = max(0.001, (now - sandbox.record.created_at).total_seconds())
    cpus = limits.cpus if limits else 1.0
    metric = MetricView(
        timestamp=timestamp(now),
        timestamp_unix=int(now.timestamp()),
        cpu_count=math.ceil(cpus),
        cpu_used_pct=round(100 * cpu_s / age_s / cpus, 2),
        mem_used=memory,
        mem_total=limits.memory_bytes if limits else 0,
        disk_used=disk,
        disk_total=ctx.settings.e2b.home_bytes,
    )
    return reply(MetricViews([metric]))


async def not_offered(request: web.Request) -> web.Response:
    """Say that something of E2B's is not offered here. Raises NotOffered, always."""
    raise NotOffered(
        f"{request.method} {request.path[:200]} is not offered by this gateway: sandboxes here have no "
        "snapshots, forks, logs or networks, and there are no templates, volumes or secrets to be made.",
        reason="e2b",
    )


def _named(request: web.Request) -> Sandbox:
    return context(request).e2b.sandboxes.get(principal(request), request.match_info["sandbox_id"])


def _created(request: web.Request, sandbox: Sandbox) -> CreatedSandbox:
    token = context(request).e2b.sandboxes.token(sandbox)
    return CreatedSandbox(
        template_id=sandbox.record.template,
        sandbox_id=sandbox.record.id,
        envd_access_token=token,
        traffic_access_token=token,
    )


def _state(sandbox: Sandbox) -> str:
    return "paused" if sandbox.record.paused else "running"


def _view(request: web.Request, sandbox: Sandbox) -> SandboxView:
    record, ctx = sandbox.record, context(request)
    handle = ctx.e2b.sandboxes.kernel(record.contexts[0].id)
    return SandboxView(
        template_id=record.template,
        alias=record.template,
        sandbox_id=record.id,
        started_at=timestamp(record.created_at),
        end_at=timestamp(record.end_at),
        cpu_count=math.ceil(handle.limits.cpus) if handle else 1,
        memory_mb=handle.limits.memory_bytes >> 20 if handle else 0,
        disk_size_mb=ctx.settings.e2b.home_bytes >> 20,
        state="paused" if record.paused else "running",
        metadata=dict(record.metadata),
    )


def _moment(text: str) -> datetime:
    try:
        found = datetime.fromisoformat(text)
    except ValueError as error:
        raise BadRequest("startedAfter is a moment in ISO 8601.", reason="startedAfter") from error
    if found.tzinfo is None:
        raise BadRequest("startedAfter needs a time zone.", reason="startedAfter")
    return found


def _page(request: web.Request, found: list[Sandbox]) -> tuple[list[Sandbox], str | None]:
    """Return the part of a list that the request asks for, and the token of the next, if there is one."""
    limit = request.query.get("limit", str(MOST))
    if not (limit.isascii() and limit.isdigit() and 1 <= int(limit[:9]) <= MOST):
        raise BadRequest(f"limit is a number from 1 to {MOST}.", reason="limit")
    start, token = 0, request.query.get("nextToken")
    if token:
        try:
            last = base64.urlsafe_b64decode(token).decode()
        except (binascii.Error, ValueError):
            last = ""
        if not PLACE.fullmatch(last):
            raise BadRequest("nextToken is none that was given.", reason="nextToken")
        places = [n for n, sandbox in enumerate(found) if _place(sandbox) == last]
        if places:
            start = places[0] + 1
        else:
            # that one has ended meanwhile
            down = request.query.get("order", "desc") != "asc"
            start = sum((_place(s) > last) if down else (_place(s) < last) for s in found)
    page = found[start : start + int(limit)]
    more = start + len(page) < len(found)
    return page, base64.urlsafe_b64encode(_place(page[-1]).encode()).decode() if page and more else None


def _place(sandbox: Sandbox) -> str:
    return f"{timestamp(sandbox.record.created_at)} {sandbox.record.id}"
