"""Tells one client of one execution's events."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import orjson

from gateway.errors import GatewayError

if TYPE_CHECKING:
    from gateway.http.rpc.method import Call
    from gateway.models.jobs import Event, EventType

NOTIFICATIONS: dict[EventType, str] = {
    "started": "execution.started",
    "stdout": "execution.output",
    "stderr": "execution.output",
    "display": "execution.output",
    "result": "execution.output",
    "update_display": "execution.output",
    "clear": "execution.output",
    "error": "execution.output",
    "tool_call": "execution.tool_call",
    "tool_answer": "execution.tool_answer",
    "paused": "execution.paused",
    "resumed": "execution.resumed",
    "task_ended": "execution.task_completed",
    "gap": "execution.gap",
    "ended": "execution.completed",
}


class Feed:
    """The events of an execution on their way to one client, as notifications.

    With `tools` the calls of the code's go to this client as requests.
    """

    def __init__(self, call: Call, execution_id: str, *, tools: bool = False) -> None:
        self._call = call
        self._id = execution_id
        self._tools = tools

    async def run(self, cursor: int = 0) -> None:
        """Tell of what comes after a cursor, until the end. Raises what `JobService.follow` raises."""
        call = self._call
        try:
            if self._tools and cursor:
                await self._again(cursor)
            async with aclosing(call.ctx.jobs.follow(call.principal, self._id, cursor=cursor)) as events:
                async for event in events:
                    if event is not None:
                        await self._tell(event)
        finally:
            call.peer.withdraw(self._id)

    async def told(self, cursor: int) -> None:
        """Do as `run` does; what goes wrong is told to the client, for nobody waits for this feed."""
        try:
            await self.run(cursor)
        except GatewayError as error:
            body = {"execution_id": self._id, "error": error.body()}
            await self._call.peer.notify("execution.lost", orjson.dumps(body))

    async def _again(self, cursor: int) -> None:
        """Put the calls that wait since before the cursor."""
        view = await self._call.ctx.jobs.view(self._call.principal, self._id)
        for event in view.pending_calls:
            if event.seq <= cursor:
                await self._tell(event)

    async def _tell(self, event: Event) -> None:
        peer, body = self._call.peer, self._body(event)
        if event.type == "tool_call" and self._tools and event.call_id is not None:
            await peer.call_tool(self._id, event.call_id, body)
            return
        if event.type == "tool_answer":
            peer.withdraw(self._id, event.call_id)
        await peer.notify(NOTIFICATIONS[event.type], body)

    def _body(self, event: Event) -> bytes:
        # by pydantic: a kernel's own JSON may hold integers that orjson does not write
        told = event.model_dump_json(exclude_none=True, exclude={"seq"}).encode()
        head: dict[str, Any] = {"execution_id": self._id, "cursor": event.seq}
        return orjson.dumps(head)[:-1] + b"," + told[1:]
