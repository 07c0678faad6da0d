"""Several observers of executions as one."""

from __future__ import annotations

from gateway.models import ExecutionRecord
from gateway.ports import ExecutionObserver


class Observers:
    """Passes every execution's end on to all, in their order: a `ports.ExecutionObserver`."""

    def __init__(self, *observers: ExecutionObserver) -> None:
        self._observers = observers

    def ended(self, record: ExecutionRecord) -> None:
        """Take the record of an execution."""
        for observer in self._observers:
            observer.ended(record)
