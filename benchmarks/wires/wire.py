"""What every way to a kernel can do."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from benchmarks.outcome import Answer

TIMEOUT_S = 60.0


class Wire(Protocol):
    """An open way to one kernel."""

    async def execute(self, code: str, timeout_s: float = TIMEOUT_S) -> Answer:
        """Run code to its end. The clock runs from the sending to the last message or byte of the answer.

        Raises TimeoutError, and ConnectionError when the way is closed.
        """
        ...


def new_id() -> str:
    """Make a message's or a session's id."""
    return uuid.uuid4().hex
