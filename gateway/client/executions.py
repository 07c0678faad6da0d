"""Executions: code in, events as they come, a result that is kept."""

from __future__ import annotations

import asyncio
import uuid
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack

from pydantic import ValidationError

from gateway.client.events import Events
from gateway.client.failures import NoAnswer, error_named
from gateway.client.paths import checked, execution_path
from gateway.client.tools import Toolbox, offers
from gateway.errors import BadRequest, Conflict, GatewayError
from gateway.models.jobs import CallAnswer, Event, JobRequest, JobSummary, JobView, TextPage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence

    from gateway.client.history import History
    from gateway.client.tools import Tool
    from gateway.client.transport import Transport
    from gateway.models.jobs import Task, ToolOffer

WAIT_S = 30.0
FAREWELL_S = 10.0  # for an interrupt to be said when the caller goes away


class Options(TypedDict, total=False):
    """What may be said of an execution beside its code: see POST /api/executions."""

    path: str
    tasks: Sequence[Task]
    on_error: Literal["stop", "continue"]
    timeout_s: float
    kernel_id: str
    context: str
    ttl_s: float
    kernel: str
    env: Mapping[str, str]
    limits: Mapping[str, float]
    workspace: str
    shared: bool
    artifacts: bool
    dataframes: bool
    text_chars: int
    parent_call: str
    ttl_result_s: float
    idempotency_key: str


class Executions:
    """The caller's executions: each runs in the gateway, found by its id, whatever the connection does."""

    def __init__(self, transport: Transport, history: History) -> None:
        self._transport = transport
        self._history = history
        self._events = Events(transport)

    async def run(
        self,
        code: str | None = None,
        *,
        tools: Mapping[str, Tool] | None = None,
        on_event: Callable[[Event], None] | None = None,
        within_s: float | None = None,
        **options: Unpack[Options],
    ) -> JobView:
        """Run code (or `path`, or `tasks`) to its end and return what it gave; its own failure is a status.

        `tools` are functions that the code may call, plain ones in threads; `on_event` sees events as they
        come. A caller that is cancelled, or waits longer than `within_s`, has the execution interrupted. A
        connection that breaks is taken up again where it broke; a process that dies leaves the execution to
        its deadline.

        Raises NoAnswer past `within_s`, and what stood against running it at all.
        """
        request = _request(code, options, offers(tools or {}))
        key = options.get("idempotency_key") or uuid.uuid4().hex
        try:
            async with asyncio.timeout(within_s):
                return await self._run(request, key, tools or {}, on_event)
        except TimeoutError as error:
            raise NoAnswer(f"The execution did not end within {within_s:g} s.") from error

    async def start(
        self,
        code: str | None = None,
        *,
        offered: Sequence[ToolOffer] = (),
        wait_s: float = 0.0,
        within_s: float | None = None,
        **options: Unpack[Options],
    ) -> JobView:
        """Start an execution as a job and return it, after its end or `wait_s` seconds.

        The request has an Idempotency-Key, the caller's or a new one: repeated, it starts nothing twice.
        Calls of tools that are `offered` wait for `answer`.
        """
        request = _request(code, options, tuple(offered), wait_s)
        key = options.get("idempotency_key") or uuid.uuid4().hex
        return await self._submit(request, key, within_s)

    async def get(
        self,
        execution_id: str,
        *,
        cursor: int | None = None,
        wait_s: float = 0.0,
        text_chars: int | None = None,
        within_s: float | None = None,
    ) -> JobView:
        """Return an execution; with a cursor the events after it too, waiting `wait_s` seconds for some."""
        return await self._transport.json(
            JobView,
            "GET",
            execution_path(execution_id),
            query={"cursor": cursor, "wait_s": wait_s or None, "text_chars": text_chars},
            within_s=within_s,
        )

    async def wait(
        self, execution_id: str, *, text_chars: int | None = None, within_s: float | None = None
    ) -> JobView:
        """Return an execution once it has ended; who stops waiting does not stop it. Raises NoAnswer."""
        try:
            async with asyncio.timeout(within_s):
                return await self._ended(execution_id, text_chars)
        except TimeoutError as error:
            raise NoAnswer(f"The execution did not end within {within_s:g} s.") from error

    def follow(self, execution_id: str, *, cursor: int = 0) -> AsyncIterator[Event]:
        """Yield the events after a cursor as they come, until the end; who stops reading does not stop it.

        A connection that breaks is opened again at the last event, as the client's `retries` allow.
        """
        return self._events.follow(execution_id, cursor)

    async def list(self, *, within_s: float | None = None) -> Sequence[JobSummary]:
        """Return the executions that are kept, newest first."""
        return await self._transport.json(list[JobSummary], "GET", "api/executions", within_s=within_s)

    async def cancel(self, execution_id: str, *, within_s: float | None = None) -> None:
        """End an execution for real, by a restart of its kernel if need be; an ended one is forgotten."""
        await self._transport.request("DELETE", execution_path(execution_id), within_s=within_s)

    async def interrupt(self, execution_id: str, *, within_s: float | None = None) -> None:
        """Interrupt the task that runs. Raises Conflict when the execution has ended."""
        path = execution_path(execution_id, "interrupt")
        await self._transport.request("POST", path, within_s=within_s)

    async def text(
        self,
        execution_id: str,
        what: Literal["stdout", "stderr", "error", "result"] = "stdout",
        *,
        task: int = 0,
        offset: int = 0,
        limit: int | None = None,
        within_s: float | None = None,
    ) -> TextPage:
        """Return a part of a text of the result, at most `limit` characters; `next_offset` leads on."""
        return await self._transport.json(
            TextPage,
            "GET",
            execution_path(execution_id, "text", what),
            query={"task": task or None, "offset": offset or None, "limit": limit},
            within_s=within_s,
        )

    async def answer(
        self,
        execution_id: str,
        call_id: str,
        result: Any = None,
        *,
        error: str | None = None,
        within_s: float | None = None,
    ) -> None:
        """Answer a tool call by a JSON value, or say why there is none. Raises NotFound (none waits)."""
        path = execution_path(execution_id, "calls", checked(call_id, "Call"))
        body = CallAnswer(result=result, error=error).model_dump()
        await self._transport.request("POST", path, body, again=True, within_s=within_s)

    async def _run(
        self,
        request: JobRequest,
        key: str,
        tools: Mapping[str, Tool],
        on_event: Callable[[Event], None] | None,
    ) -> JobView:
        starting = asyncio.ensure_future(self._submit(request, key))
        try:
            view = await asyncio.shield(starting)
            if (tools or on_event) and not view.status.ended:
                await self._attend(view.id, tools, on_event)
            view = await self._ended(view.id, request.text_chars)
        except BaseException:
            await self._leave(starting, lists=len(request.tasks) > 1)
            raise
        if view.failure is not None:
            raise error_named(view.failure.code, view.failure.message, view.failure.reason)
        self._record(request, view)
        return view

    async def _submit(self, request: JobRequest, key: str, within_s: float | None = None) -> JobView:
        return await self._transport.json(
            JobView,
            "POST",
            "api/executions",
            request.model_dump(exclude_unset=True),
            headers={"Idempotency-Key": key},
            again=True,
            within_s=within_s,
        )

    async def _attend(
        self, execution_id: str, tools: Mapping[str, Tool], on_event: Callable[[Event], None] | None
    ) -> None:
        """Pass events on and serve tool calls until the end."""

        async def answer(call_id: str, given: CallAnswer) -> None:
            await self.answer(execution_id, call_id, given.result, error=given.error)

        following = self._events.follow(execution_id, 0)
        async with Toolbox(tools, answer) as toolbox, aclosing(following) as events:
            async for event in events:
                toolbox.take(event)
                if event.type == "gap":
                    # calls may have been among what is gone
                    for call in (await self.get(execution_id)).pending_calls:
                        toolbox.take(call)
                if on_event is not None:
                    on_event(event)

    async def _ended(self, execution_id: str, text_chars: int | None) -> JobView:
        while True:
            view = await self.get(execution_id, wait_s=WAIT_S, text_chars=text_chars)
            if view.status.ended:
                return view

    async def _leave(self, starting: asyncio.Future[JobView], *, lists: bool) -> None:
        """Interrupt what was started, also where its id is still to come; nothing more of a list begins."""
        try:
            with suppress(GatewayError, TimeoutError):
                async with asyncio.timeout(FAREWELL_S):
                    view = await starting
                    try:
                        if lists:
                            await self.cancel(view.id)
                        else:
                            await self.interrupt(view.id)
                    except Conflict as error:
                        if error.reason == "not_running":
                            await self.cancel(view.id)
        finally:
            starting.cancel()

    def _record(self, request: JobRequest, view: JobView) -> None:
        results = [view.result] if view.tasks is None else [task.result for task in view.tasks]
        for task, result in zip(request.work(), results, strict=False):
            if result is not None:
                self._history.add(
                    task.code,
                    result,
                    path=task.path,
                    status=None if view.tasks else str(view.status),
                    kernel_id=view.kernel_id,
                    context=view.context,
                    started_at=None if view.tasks else view.started_at,
                )


def _request(
    code: str | None, options: Options, tools: Sequence[ToolOffer], wait_s: float = 0.0
) -> JobRequest:
    said = {name: value for name, value in options.items() if name != "idempotency_key"}
    if code is not None:
        said["code"] = code
    if tools:
        said["tools"] = tuple(tools)
    if wait_s:
        said["wait_s"] = wait_s
    try:
        return JobRequest.model_validate({**said, "mode": "job"})
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise BadRequest(f"The execution is not one: {place} {first['msg']}.".replace(":  ", ": ")) from error
