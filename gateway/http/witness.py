"""What the door itself puts on record: whom it refused, what failed, and what a client did over a socket."""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING

import orjson

from gateway.errors import GatewayError
from gateway.models import AuditAction, AuditEvent, AuditOutcome

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gateway.models import Message
    from gateway.ports import Audit, Clock

REFUSALS = {
    401: AuditAction.AUTH_REFUSED,
    403: AuditAction.ACCESS_REFUSED,
    404: AuditAction.ACCESS_REFUSED,
    413: AuditAction.LIMIT_REFUSED,
    429: AuditAction.LIMIT_REFUSED,
    431: AuditAction.LIMIT_REFUSED,
}
# Requests of a socket's with a record each; executions have theirs when they end.
RECORDED = {
    "interrupt_request": AuditAction.KERNEL_INTERRUPT,
    "shutdown_request": AuditAction.KERNEL_SHUTDOWN,
    "debug_request": AuditAction.KERNEL_DEBUG,
}
# All others are counted, and so few kinds that their counts fit into one record.
UNCOUNTED = frozenset({"execute_request", *RECORDED})


def failing(event: AuditEvent, error: GatewayError) -> AuditEvent:
    """Return the record of what did not come about: refused, or tried and failed."""
    action = REFUSALS.get(error.status)
    return event.model_copy(
        update={
            "action": action or event.action,
            "outcome": AuditOutcome.ERROR if action is None else AuditOutcome.REFUSED,
            "reason": error.reason or error.code,
        }
    )


class Witness:
    """Records what one client does over one socket to a kernel; used while its request is served."""

    def __init__(self, audit: Audit, clock: Clock, kernel_id: str) -> None:
        self._audit = audit
        self._clock = clock
        self._kernel_id = kernel_id
        self._opened = clock.monotonic()
        self._counts: Counter[str] = Counter()
        self._sent = 0

    def opened(self) -> None:
        """Record that the socket is open."""
        self._opened = self._clock.monotonic()
        self._audit.record(AuditEvent(action=AuditAction.CHANNELS_OPEN, kernel_id=self._kernel_id))

    @contextmanager
    def asked(self, message: Message) -> Iterator[None]:
        """Record a request, or count it, when the body has passed it on; one that fails is always recorded.

        Raises AuditUnavailable.
        """
        kind = message.msg_type
        event = AuditEvent(
            action=RECORDED.get(kind, AuditAction.REQUEST_FAILED),
            kernel_id=self._kernel_id,
            target=_command(message) if kind == "debug_request" else kind,
        )
        try:
            # an end is never refused for want of a record
            if kind in RECORDED and event.action is not AuditAction.KERNEL_SHUTDOWN:
                self._audit.admit()
            yield
        except GatewayError as error:
            self._audit.record(failing(event, error))
            raise
        if kind in RECORDED:
            self._audit.record(event)
        elif kind not in UNCOUNTED:
            self._counts[kind] += 1

    def dropped(self, reason: str, target: str | None = None) -> None:
        """Record a frame that was not passed on."""
        self._audit.record(
            AuditEvent(
                action=AuditAction.REQUEST_FAILED,
                outcome=AuditOutcome.ERROR,
                kernel_id=self._kernel_id,
                target=target,
                reason=reason,
            )
        )

    def sent(self, size: int) -> None:
        """Count bytes that the client was sent."""
        self._sent += size

    def closed(self, code: int | None) -> None:
        """Record that the socket has ended: how long it was open, what was asked how often, what was sent."""
        self._audit.record(
            AuditEvent(
                action=AuditAction.CHANNELS_CLOSE,
                kernel_id=self._kernel_id,
                reason=None if code is None else str(code),
                duration_s=round(self._clock.monotonic() - self._opened, 6),
                output_bytes=self._sent,
                extra=dict(self._counts),
            )
        )


def _command(message: Message) -> str | None:
    """Return which command of the debugger's a request has, if it says so."""
    try:
        content = orjson.loads(message.content)
    except orjson.JSONDecodeError:
        return None
    command = content.get("command") if isinstance(content, dict) else None
    return command if isinstance(command, str) else None
