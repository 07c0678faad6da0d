"""Equal refusals become one record with a count, so that a flood of them does not fill the trail."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.models import AuditEvent

# Distinct kinds of refusals that are told apart within one window; what comes beyond is one kind.
MAX_KINDS = 256


@dataclass(slots=True)
class _Seen:
    event: AuditEvent
    passed: int = 0
    folded: int = 0


class Folding:
    """Counts refusals by who, whence and why, from one flush to the next."""

    def __init__(self, per_window: int) -> None:
        self._per_window = per_window
        self._seen: dict[tuple[object, ...], _Seen] = {}

    def take(self, event: AuditEvent, *, fold: bool = False) -> AuditEvent | None:
        """Return what is to be recorded now for a refusal: itself, or None when it is only counted.

        `fold` has it counted in any case.
        """
        kind: tuple[object, ...] = (event.action, event.who, event.key_id, event.address, event.reason)
        if kind not in self._seen and len(self._seen) >= MAX_KINDS:
            kind = ()
            event = AuditEvent(action=event.action, outcome=event.outcome, door=event.door, reason="others")
        seen = self._seen.setdefault(kind, _Seen(event))
        if seen.passed < self._per_window and not fold:
            seen.passed += 1
            return event
        seen.folded += 1
        return None

    def flush(self) -> list[AuditEvent]:
        """Return the counts of what was folded, and begin a new window."""
        folded = [
            seen.event.model_copy(update={"request_id": None, "extra": {"folded": seen.folded}})
            for seen in self._seen.values()
            if seen.folded
        ]
        self._seen.clear()
        return folded
