"""Calls of tools that come from code in a cell, and the desks that answer them."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import orjson
import structlog
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gateway.errors import GatewayError
from gateway.kernels.attendant import Attendant, Broken
from gateway.ports import ToolDesk

log = structlog.get_logger()

# calls that an attendant has open, that are worked on at a time, bytes of all that they ask, and of an answer
OPEN, AT_A_TIME, ASKED, ANSWER = 64, 16, 8 << 20, 4 << 20


class _Request(BaseModel):
    """What code in a cell asks."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str = Field(min_length=1, max_length=128)
    arguments: dict[str, Any] = Field(default_factory=dict)


class Desks:
    """Who answers one kernel's calls: the newest does, in the context of the request that it came with."""

    def __init__(self) -> None:
        self._desks: list[tuple[ToolDesk, contextvars.Context]] = []

    def __bool__(self) -> bool:
        return bool(self._desks)

    @contextmanager
    def with_one(self, desk: ToolDesk) -> Iterator[None]:
        """Have a desk answer while the body runs."""
        place = (desk, contextvars.copy_context())
        self._desks.append(place)
        try:
            yield
        finally:
            self._desks = [each for each in self._desks if each is not place]

    def newest(self) -> tuple[ToolDesk, contextvars.Context] | None:
        """Return who answers now, if anybody does."""
        return self._desks[-1] if self._desks else None


class ToolCalls:
    """The open calls of one cell; owns the task of each."""

    def __init__(self, desks: Desks) -> None:
        self._desks = desks
        self._attendant: Attendant | None = None
        self._places = asyncio.Semaphore(AT_A_TIME)
        self._calls: dict[int, tuple[ToolDesk, asyncio.Task[None], int]] = {}

    def serve(self, attendant: Attendant) -> None:
        """Answer through an attendant."""
        self._attendant = attendant

    def called(self, number: int, request: bytes) -> None:
        """Take a call. Raises Broken."""
        if number in self._calls or len(self._calls) >= OPEN:
            raise Broken
        found = self._desks.newest()
        if found is None:
            self._refuse(number, "no_tools", "Nobody offers tools to this kernel.")
        elif sum(size for _, _, size in self._calls.values()) + len(request) > ASKED:
            self._refuse(number, "limit_reached", "Too much is asked at a time.")
        else:
            desk, context = found
            work = self._serve(number, desk, request)
            task = asyncio.get_running_loop().create_task(work, context=context.copy())
            self._calls[number] = (desk, task, len(request))

    def hung_up(self, number: int) -> None:
        """Take back a call, if it is still open."""
        if call := self._calls.pop(number, None):
            call[1].cancel()

    def withdraw(self, desk: ToolDesk) -> None:
        """Take back all that a desk works on, and say so."""
        for number, (each, task, _) in list(self._calls.items()):
            if each is desk:
                del self._calls[number]
                task.cancel()
                self._refuse(number, "no_tools", "The tools are not offered any more.")

    def close(self) -> None:
        """Take back everything; nobody is told."""
        self._attendant = None
        for _, task, _ in self._calls.values():
            task.cancel()
        self._calls.clear()

    async def _serve(self, number: int, desk: ToolDesk, request: bytes) -> None:
        async with self._places:
            answer = await _answer(desk, request)
        attendant = self._attendant
        # it is answered as long as it is open, and after that by nobody
        if attendant and self._calls.get(number, (None, None, 0))[1] is asyncio.current_task():
            with suppress(GatewayError):
                await attendant.deliver({"op": "answer", "c": number}, answer)
            self._calls.pop(number, None)

    def _refuse(self, number: int, code: str, message: str) -> None:
        if self._attendant:
            with suppress(GatewayError):
                self._attendant.tell({"op": "answer", "c": number}, _error(code, message))


async def _answer(desk: ToolDesk, text: bytes) -> bytes:
    """Return what a desk answers to a request, or why it does not."""
    try:
        request = _Request.model_validate(orjson.loads(text))
    except orjson.JSONDecodeError:
        return _error("bad_request", "A call is one line of JSON.")
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        return _error("bad_request", f"The field {place} of the call is wrong: {first['msg']}.")
    try:
        answer = orjson.dumps({"result": await desk.call(request.name, request.arguments)})
    except GatewayError as error:
        return _error(error.code, error.message)
    except Exception:  # the code in the cell is told no more than that
        log.exception("a tool failed", tool=request.name)
        return _error("internal_error", "The tool failed.")
    if len(answer) > ANSWER:
        return _error("payload_too_large", f"The result has more than {ANSWER} bytes.")
    return answer


def _error(code: str, message: str) -> bytes:
    return orjson.dumps({"error": {"code": code, "message": message}})
