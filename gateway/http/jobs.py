"""Executions as resources: begin one, follow it, look at it, cancel it, answer its tool calls."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING

from aiohttp import hdrs, web
from pydantic import RootModel

from gateway.errors import BadRequest
from gateway.http.access import PRINCIPAL, owner
from gateway.http.bodies import read_model
from gateway.http.context import context, origin, principal, rate_headers, reply
from gateway.http.event_stream import FORMATS, EventStream
from gateway.http.files import number
from gateway.http.route import Route
from gateway.models import Scope
from gateway.models.jobs import CallAnswer, JobRequest, JobSummary, JobView, TextPage

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_WAIT_S = 60.0
MAX_TEXT_CHARS = 1 << 20
CURSOR = {"cursor": "Number of the last event that is known: those after it come along."}
TEXT = {"text_chars": "Cut each text of the result to so many characters."}


class JobList(RootModel[list[JobSummary]]):
    """Executions, newest first."""


async def create_execution(request: web.Request) -> web.StreamResponse:
    """Begin an execution, and answer as its `mode` says."""
    ctx, who = context(request), principal(request)
    wanted = await read_model(request, JobRequest)
    stream = EventStream.wanted(request)
    job_id = await ctx.jobs.submit(
        who, wanted, origin=origin(request, "rest"), idempotency_key=request.headers.get("Idempotency-Key")
    )
    if wanted.mode == "stream" or (stream is not None and wanted.mode == "wait"):
        try:
            return await _streamed(request, job_id, stream or EventStream(FORMATS[0]))
        except BaseException:
            # whenever its caller goes: while its kernel starts, too
            ctx.jobs.leave(job_id)
            raise
    if wanted.mode == "wait":
        view = await ctx.jobs.wait(who, job_id, text_chars=wanted.text_chars)
        status = 200
    else:
        view = await ctx.jobs.view(who, job_id, wait_s=wanted.wait_s, text_chars=wanted.text_chars)
        status = 202
    left = ctx.quotas.allowance(who.name, "executions_per_minute")
    return reply(view, status=status, location=f"/api/executions/{job_id}", allowance=left)


async def list_jobs(request: web.Request) -> web.Response:
    """List the caller's executions that are kept."""
    return reply(JobList(await context(request).jobs.list(principal(request))))


async def get_execution(request: web.Request) -> web.Response:
    """Show an execution, with its events after a cursor."""
    query = request.query
    view = await context(request).jobs.view(
        principal(request),
        request.match_info["execution_id"],
        cursor=_count(query, "cursor"),
        wait_s=_seconds(query, "wait_s"),
        text_chars=number(query.get("text_chars"), "text_chars"),
    )
    return reply(view)


async def execution_events(request: web.Request) -> web.StreamResponse:
    """Stream an execution's events; a reader that goes away does not concern it."""
    stream = EventStream.wanted(request) or EventStream(FORMATS[0])
    return await _streamed(request, request.match_info["execution_id"], stream)


async def execution_text(request: web.Request) -> web.Response:
    """Show a part of a text of an execution's result."""
    query = request.query
    page = await context(request).jobs.text(
        principal(request),
        request.match_info["execution_id"],
        request.match_info["what"],
        task=_count(query, "task") or 0,
        offset=_count(query, "offset") or 0,
        limit=min(number(query.get("limit"), "limit") or 65_536, MAX_TEXT_CHARS),
    )
    return reply(page)


async def interrupt_job(request: web.Request) -> web.Response:
    """Interrupt what an execution runs."""
    await context(request).jobs.interrupt(principal(request), request.match_info["execution_id"])
    return web.Response(status=204)


async def cancel_job(request: web.Request) -> web.Response:
    """End an execution for real, or forget one that has ended."""
    await context(request).jobs.cancel(principal(request), request.match_info["execution_id"])
    return web.Response(status=204)


async def answer_call(request: web.Request) -> web.Response:
    """Answer a tool call of an execution's code."""
    answer = await read_model(request, CallAnswer)
    match = request.match_info
    await context(request).jobs.answer(principal(request), match["execution_id"], match["call_id"], answer)
    return web.Response(status=204)


async def _streamed(request: web.Request, job_id: str, stream: EventStream) -> web.StreamResponse:
    ctx, who = context(request), principal(request)
    # what stands against it is an ordinary answer, as long as there can be one
    await ctx.jobs.placed(who, job_id)
    response = stream.response()
    response.headers[hdrs.LOCATION] = f"/api/executions/{job_id}"
    response.headers["X-Execution-Id"] = job_id
    if (left := ctx.quotas.allowance(who.name, "executions_per_minute")) is not None:
        response.headers.update(rate_headers(left))
    events = ctx.jobs.follow(
        who,
        job_id,
        cursor=stream.cursor(request),
        beat_s=ctx.settings.executions.keepalive_s,
    )
    async with aclosing(events):
        await response.prepare(request)
        async for event in events:
            await response.write(stream.beat() if event is None else stream.encode(event))
        await response.write_eof()
    return response


def _count(query: Mapping[str, str], name: str) -> int | None:
    given = query.get(name)
    return 0 if given == "0" else number(given, name)


def _seconds(query: Mapping[str, str], name: str) -> float:
    try:
        seconds = float(query.get(name, "0"))
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= MAX_WAIT_S:
        raise BadRequest(f"The query parameter {name} is from 0 to {MAX_WAIT_S:g} seconds.", reason=name)
    return seconds


JOB_ROUTES: tuple[Route, ...] = (
    Route(
        "GET",
        "/api/executions",
        list_jobs,
        PRINCIPAL,
        "List the caller's executions, newest first.",
        {200: JobList},
        "executions",
    ),
    Route(
        "POST",
        "/api/executions",
        create_execution,
        PRINCIPAL,
        "Execute code, a file or a list of tasks: wait for it, stream it, or have it as a job.",
        {200: JobView, 202: JobView},
        "executions",
        body=JobRequest,
        streams="text/event-stream, application/x-ndjson",
    ),
    Route(
        "GET",
        "/api/executions/{execution_id}",
        get_execution,
        owner("execution_id", Scope.EXECUTE),
        "Show an execution, its results, and its events after a cursor.",
        {200: JobView},
        "executions",
        query=CURSOR | TEXT | {"wait_s": "Seconds to wait for its end, or for an event after the cursor."},
    ),
    Route(
        "GET",
        "/api/executions/{execution_id}/events",
        execution_events,
        owner("execution_id", Scope.EXECUTE),
        "Stream an execution's events, as SSE or NDJSON.",
        {200: "text/event-stream, application/x-ndjson"},
        "executions",
        query=CURSOR,
    ),
    Route(
        "GET",
        "/api/executions/{execution_id}/text/{what}",
        execution_text,
        owner("execution_id", Scope.EXECUTE),
        "Show a part of a text: stdout, stderr, error or result.",
        {200: TextPage},
        "executions",
        query={
            "task": "Index of the task, 0 when left out.",
            "offset": "The first character.",
            "limit": "Most characters.",
        },
    ),
    Route(
        "POST",
        "/api/executions/{execution_id}/interrupt",
        interrupt_job,
        owner("execution_id", Scope.EXECUTE),
        "Interrupt what an execution runs.",
        {204: None},
        "executions",
    ),
    Route(
        "DELETE",
        "/api/executions/{execution_id}",
        cancel_job,
        owner("execution_id", Scope.EXECUTE),
        "Cancel an execution, by a restart of the kernel if need be; forget one that has ended.",
        {204: None},
        "executions",
    ),
    Route(
        "POST",
        "/api/executions/{execution_id}/calls/{call_id}",
        answer_call,
        owner("execution_id", Scope.EXECUTE),
        "Answer a tool call of an execution's code.",
        {204: None},
        "executions",
        body=CallAnswer,
    ),
)
