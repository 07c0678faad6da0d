"""Tools of the client's that code in a cell calls: which, how often, with how much, and their answers."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import orjson

from gateway.errors import (
    BadRequest,
    GatewayError,
    LimitReached,
    NotFound,
    PayloadTooLarge,
    RequestTimeout,
    ToolFailed,
)
from gateway.models import AuditAction, AuditEvent, AuditOutcome
from gateway.services.quotas import Window

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from gateway.models import Origin
    from gateway.models.jobs import CallAnswer, Event, ToolOffer
    from gateway.ports import Audit, Clock
    from gateway.services.journal import Journal
    from gateway.settings import ToolsSettings


class CallDesk:
    """Passes the calls of one job's code on to its client, as events, and their answers back.

    A `ports.ToolDesk`. What was not offered does not exist; every call has its record.
    """

    def __init__(
        self,
        offers: Iterable[ToolOffer],
        journal: Journal,
        *,
        settings: ToolsSettings,
        clock: Clock,
        audit: Audit,
        origin: Origin,
    ) -> None:
        self._names = {offer.name for offer in offers}
        self._journal = journal
        self._settings = settings
        self._clock = clock
        self._audit = audit
        self._origin = origin
        self._minute = Window()
        self._calls = 0
        self._waiting: dict[str, tuple[Event, asyncio.Future[CallAnswer]]] = {}
        self.task = 0
        self.kernel_id: str | None = None

    async def call(self, name: str, arguments: Mapping[str, Any]) -> Any:
        """Return what the client answers to a call.

        Raises NotFound (not offered), LimitReached, PayloadTooLarge, BadRequest, RequestTimeout, ToolFailed.
        """
        began = self._clock.monotonic()
        try:
            result = await self._call(name, arguments)
        except BaseException as error:
            refused = isinstance(error, NotFound | LimitReached | PayloadTooLarge | BadRequest)
            outcome = AuditOutcome.REFUSED if refused else AuditOutcome.ERROR
            code = error.code if isinstance(error, GatewayError) else "withdrawn"
            self._record(name, began, outcome, reason=code)
            raise
        self._record(name, began, AuditOutcome.OK)
        return result

    def answer(self, call_id: str, answer: CallAnswer) -> None:
        """Answer a call that waits. Raises NotFound, PayloadTooLarge."""
        waiting = self._waiting.get(call_id)
        if waiting is None or waiting[1].done():
            raise NotFound(f"No such tool call waits for an answer: {call_id[:64]}")
        if _size(answer.result) > self._settings.result_bytes:
            raise PayloadTooLarge(
                f"The result is larger than {self._settings.result_bytes} bytes (tools.result_bytes)."
            )
        waiting[1].set_result(answer)

    def pending(self) -> list[Event]:
        """Return the calls that wait for an answer, oldest first."""
        return [event for event, answered in self._waiting.values() if not answered.done()]

    def waits(self, call_id: str) -> bool:
        """Tell whether a call waits for an answer."""
        return call_id in self._waiting

    async def _call(self, name: str, arguments: Mapping[str, Any]) -> Any:
        self._check(name, arguments)
        call_id = uuid4().hex
        event = self._journal.add(
            "tool_call", task=self.task, call_id=call_id, name=name, arguments=dict(arguments)
        )
        answered: asyncio.Future[CallAnswer] = asyncio.get_running_loop().create_future()
        self._waiting[call_id] = event, answered
        try:
            async with asyncio.timeout(self._settings.timeout_s):
                answer = await answered
        except TimeoutError:
            raise RequestTimeout(
                f"The tool {name} did not answer within {self._settings.timeout_s:g} s (tools.timeout_s).",
                reason="tool_timeout",
            ) from None
        finally:
            del self._waiting[call_id]
            # told whatever became of it, so that nobody goes on waiting to answer
            self._journal.add("tool_answer", task=self.task, call_id=call_id, name=name)
        if answer.error is not None:
            raise ToolFailed(answer.error)
        return answer.result

    def _check(self, name: str, arguments: Mapping[str, Any]) -> None:
        if name not in self._names:
            raise NotFound(f"There is no tool {name[:64]!r} here.", reason="no_tool")
        if _size(arguments) > self._settings.argument_bytes:
            raise PayloadTooLarge(
                f"The arguments are larger than {self._settings.argument_bytes} bytes (tools.argument_bytes)."
            )
        if len(self._waiting) >= self._settings.max_waiting:
            raise LimitReached("Too many tool calls wait for an answer (tools.max_waiting).", reason="tools")
        now = self._clock.monotonic()
        left = self._minute.allowance(self._settings.max_calls_per_minute, now).remaining
        if self._calls >= self._settings.max_calls or not left:
            raise LimitReached(
                "This execution has made as many tool calls as it may (tools.max_calls, "
                "tools.max_calls_per_minute).",
                reason="tools",
            )
        self._calls += 1
        self._minute.add(now)

    def _record(self, name: str, began: float, outcome: AuditOutcome, reason: str | None = None) -> None:
        origin = self._origin
        self._audit.record(
            AuditEvent(
                action=AuditAction.TOOL_CALL,
                outcome=outcome,
                who=origin.principal,
                key_id=origin.key_id,
                address=origin.address,
                door=origin.door,
                request_id=origin.request_id,
                kernel_id=self.kernel_id,
                target=name,
                reason=reason,
                duration_s=round(self._clock.monotonic() - began, 6),
            )
        )


def _size(value: object) -> int:
    """Return how many bytes a value takes as JSON. Raises BadRequest for one that is nested too deeply."""
    try:
        return len(orjson.dumps(value))
    except TypeError as error:
        raise BadRequest("The value is nested too deeply.", reason="depth") from error
