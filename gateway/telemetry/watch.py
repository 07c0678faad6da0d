"""Watches the audit trail for what an operator wants to be told of: deaths, culls, limits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.models import AuditAction, DeathReason
from gateway.models.notices import Notice, NoticeKind
from gateway.origin import current

if TYPE_CHECKING:
    from gateway.models import AuditEvent
    from gateway.ports import Audit, Clock
    from gateway.ports.events import Notifier
    from gateway.telemetry.metrics import Metrics

# who runs into a limit does so many times a second: a notice for each would crowd out all others
QUIET_S = 60.0
REMEMBERED = 1000

_LIMIT_OF = {DeathReason.OOM.value: "memory", DeathReason.CPU.value: "cpu"}


class AuditWatch:
    """A `ports.Audit` that passes everything on to another, and tells metrics and a notifier on the way.

    Of a principal that runs into one limit again and again, a notice goes out once a minute.
    """

    def __init__(self, audit: Audit, metrics: Metrics, notifier: Notifier, clock: Clock) -> None:
        self._audit = audit
        self._metrics = metrics
        self._notifier = notifier
        self._clock = clock
        self._told: dict[tuple[str, str], float] = {}

    def record(self, event: AuditEvent) -> None:
        """Take an event."""
        self._audit.record(event)
        if event.action is AuditAction.KERNEL_DIE:
            if event.reason in _LIMIT_OF:
                self._metrics.hit(_LIMIT_OF[event.reason])
            self._tell(NoticeKind.KERNEL_DIED, event, str(event.extra.get("owner", "")))
        elif event.action is AuditAction.KERNEL_CULL:
            self._tell(NoticeKind.KERNEL_CULLED, event, str(event.extra.get("owner", "")))
        elif event.action is AuditAction.LIMIT_REFUSED:
            origin, limit = current(), event.reason or "other"
            self._metrics.hit(limit)
            who = event.who or (origin and origin.principal)
            if who and self._is_news(who, limit):
                self._tell(NoticeKind.LIMIT_HIT, event, who)

    def admit(self) -> None:
        """Let something new begin. Raises AuditUnavailable."""
        self._audit.admit()

    async def written(self) -> None:
        """Wait until all that was recorded so far is in the trail. Raises AuditUnavailable."""
        await self._audit.written()

    def _tell(self, kind: NoticeKind, event: AuditEvent, owner: str) -> None:
        origin = current() if event.door is None else None
        self._notifier.tell(
            Notice(
                kind=kind,
                at=self._clock.now(),
                owner=owner,
                door=origin.door if origin else event.door,
                kernel_id=event.kernel_id,
                request_id=origin.request_id if origin else event.request_id,
                reason=event.reason,
            )
        )

    def _is_news(self, who: str, limit: str) -> bool:
        now = self._clock.monotonic()
        if now - self._told.get((who, limit), -QUIET_S) < QUIET_S:
            return False
        if len(self._told) >= REMEMBERED:
            self._told = {key: at for key, at in self._told.items() if now - at < QUIET_S}
            if len(self._told) >= REMEMBERED:
                return False
        self._told[who, limit] = now
        return True
