"""Tool calls that were put to one client and wait for its answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class ToolCalls:
    """Which request to the client stands for which call: a request is answered once, and no other is.

    There are at most as many as executions have calls waiting (`tools.max_waiting`).
    """

    def __init__(self, new_id: Callable[[], str]) -> None:
        self._new_id = new_id
        self._asked: dict[str, tuple[str, str]] = {}

    def put(self, execution_id: str, call_id: str) -> str:
        """Return the id of a new request for a call."""
        asked = self._new_id()
        self._asked[asked] = execution_id, call_id
        return asked

    def take(self, asked: str) -> tuple[str, str] | None:
        """Return the execution and the call that an answer is for; None when nobody waits for it."""
        return self._asked.pop(asked, None)

    def withdraw(self, execution_id: str, call_id: str | None = None) -> None:
        """Forget a call of an execution's, or all of them."""
        self._asked = {
            asked: (execution, call)
            for asked, (execution, call) in self._asked.items()
            if execution != execution_id or call_id not in {None, call}
        }
