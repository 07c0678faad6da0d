"""Tools that code in a cell may call: functions of the caller's, run where the client is."""

from __future__ import annotations

import asyncio
import inspect
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Self

import orjson
from pydantic import ValidationError

from gateway.errors import BadRequest, GatewayError
from gateway.models.jobs import CallAnswer, ToolOffer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from gateway.models.jobs import Event

    Tool = Callable[..., Any]

MAX_ERROR_CHARS = 16 << 10
MAX_AT_ONCE = 32


def offers(tools: Mapping[str, Tool]) -> tuple[ToolOffer, ...]:
    """Return what the gateway is told of tools: their names, and their docstrings. Raises BadRequest."""
    try:
        return tuple(
            ToolOffer(name=name, description=(inspect.getdoc(tool) or "")[:4096])
            for name, tool in tools.items()
        )
    except ValidationError as error:
        raise BadRequest(f"A tool's name is not one: {error.errors()[0]['msg']}.", reason="tools") from error


class Toolbox:
    """Answers the tool calls of one execution, in parallel. Use as an async context manager.

    A tool that raises is an error in the cell, with the exception's type and words and no traceback. Calls
    that are under way when the execution ends are cancelled; a thread that runs a plain function goes on to
    its end.
    """

    def __init__(
        self, tools: Mapping[str, Tool], answer: Callable[[str, CallAnswer], Awaitable[None]]
    ) -> None:
        self._tools = tools
        self._answer = answer
        self._at_once = asyncio.Semaphore(MAX_AT_ONCE)
        self._calls: dict[str, asyncio.Task[None]] = {}
        self._seen: set[str] = set()
        self._answered: set[str] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        calls = list(self._calls.values())
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)

    def take(self, event: Event) -> None:
        """Begin what a `tool_call` asks for, once, and give up a call that was answered for us."""
        if event.call_id is None:
            return
        if event.type == "tool_call" and event.call_id not in self._seen:
            self._seen.add(event.call_id)
            call = asyncio.create_task(self._serve(event.call_id, event.name or "", event.arguments or {}))
            self._calls[event.call_id] = call
            call.add_done_callback(lambda _: self._calls.pop(event.call_id or "", None))
        elif event.type == "tool_answer" and event.call_id in self._calls.keys() - self._answered:
            self._calls[event.call_id].cancel()

    async def _serve(self, call_id: str, name: str, arguments: Mapping[str, Any]) -> None:
        async with self._at_once:
            answer = await self._called(name, arguments)
        self._answered.add(call_id)
        # it was withdrawn, or timed out; and where the gateway is gone, the execution says so
        with suppress(GatewayError):
            await self._answer(call_id, answer)

    async def _called(self, name: str, arguments: Mapping[str, Any]) -> CallAnswer:
        tool = self._tools.get(name)
        if tool is None:
            return CallAnswer(error=f"There is no tool {name!r}.")
        try:
            if inspect.iscoroutinefunction(tool):
                result = await tool(**arguments)
            else:
                result = await asyncio.to_thread(tool, **arguments)
                if inspect.isawaitable(result):
                    result = await result
            orjson.dumps(result)
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a tool raises is the cell's to see
            return CallAnswer(error=f"{type(error).__name__}: {error}"[:MAX_ERROR_CHARS])
        return CallAnswer(result=result)
