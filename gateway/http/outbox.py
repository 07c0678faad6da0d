"""What waits to be written to one socket: bounded, and cut with a mark where its reader is too slow."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gateway.http.authored import CUT, note
from gateway.models import DeathReason, Message

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gateway.telemetry import Metrics

# Output that may be cut. Whatever else a kernel says (status, error, execute_input, replies, input_request)
# tells clients what state they are in, and is never left out.
OUTPUT = frozenset(
    {
        "stream",
        "display_data",
        "update_display_data",
        "execute_result",
        "clear_output",
        "comm_open",
        "comm_msg",
        "comm_close",
        "debug_event",
    }
)
OVERHEAD_BYTES = 512  # what a queued message costs beside its bytes

NORMAL = 1000
INTERNAL_ERROR = 1011
TRY_AGAIN_LATER = 1013


@dataclass(frozen=True)
class Close:
    """How a socket shall be closed: a WebSocket close code and a short reason."""

    code: int
    reason: str


class Load:
    """What messages of one kind weigh together, against a bound."""

    def __init__(self, max_bytes: int, max_messages: int) -> None:
        self._max_bytes = max_bytes
        self._max_messages = max_messages
        self._bytes = 0
        self._messages = 0

    def fits(self, message: Message, share: float = 1.0) -> bool:
        """Tell whether one more stays within this share of the bound; a lone one always does."""
        return self._messages == 0 or (
            self._bytes + message.size + OVERHEAD_BYTES <= share * self._max_bytes
            and self._messages < share * self._max_messages
        )

    def add(self, message: Message, sign: int = 1) -> None:
        """Count a message, or with -1 count it no more."""
        self._bytes += sign * (message.size + OVERHEAD_BYTES)
        self._messages += sign


class Outbox:
    """A bounded queue of messages for one client; the subscriber that the kernel knows.

    Past `max_bytes` or `max_messages` of output, more is left out until half of it has been read, and a note
    on stderr stands in its place, one for each request whose output is cut. What may not be left out has
    half of these bytes beside, and as many messages; past them the socket is to be closed with 1013.
    """

    def __init__(self, *, max_bytes: int, max_messages: int, metrics: Metrics) -> None:
        self._metrics = metrics
        self._missed: deque[Message] = deque()
        self._queue: deque[Message] = deque()
        self._output = Load(max_bytes, max_messages)
        self._vital = Load(max_bytes // 2, max_messages)
        self._cut_parents: set[str] = set()
        self._wake = asyncio.Event()
        self.closing: Close | None = None

    def __len__(self) -> int:
        return len(self._missed) + len(self._queue)

    @property
    def behind(self) -> bool:
        """Whether some of what the client missed is still to come."""
        return bool(self._missed)

    def catch_up(self, missed: Iterable[Message]) -> None:
        """Put what the client missed before everything else; it is bounded where it was kept, not here."""
        self._missed.extend(missed)

    def deliver(self, message: Message) -> None:
        """Queue a message, or leave it out with a mark."""
        if self.closing is not None:
            return
        if not _is_output(message):
            self._push_vital(message)
        elif self._output.fits(message, 0.5 if self._cut_parents else 1.0):
            self._cut_parents.clear()
            self._push(message, self._output)
        else:
            self._metrics.dropped_messages.labels("slow_client").inc()
            if message.parent_id not in self._cut_parents:
                self._cut_parents.add(message.parent_id)
                self._push_vital(note(message, CUT))

    def ended(self, reason: DeathReason) -> None:
        """Close the socket once everything is written: 1000 if the kernel was ended on purpose, else 1011."""
        wanted = reason in {DeathReason.SHUTDOWN, DeathReason.CULLED}
        self.finish(Close(NORMAL if wanted else INTERNAL_ERROR, f"The kernel has ended: {reason}."))

    def finish(self, close: Close, *, flush: bool = True) -> None:
        """Take nothing more, and close the socket when what is queued is written, or at once."""
        if self.closing is None:
            self.closing = close
        if not flush:
            self._missed.clear()
            self._queue.clear()
        self._wake.set()

    async def next(self) -> Message | None:
        """Wait for the next message; None when there will be none any more."""
        if self._missed:
            return self._missed.popleft()
        while not self._queue:
            if self.closing is not None:
                return None
            self._wake.clear()
            await self._wake.wait()
        message = self._queue.popleft()
        (self._output if _is_output(message) else self._vital).add(message, -1)
        return message

    def _push_vital(self, message: Message) -> None:
        if self._vital.fits(message):
            self._push(message, self._vital)
        else:
            self.finish(Close(TRY_AGAIN_LATER, "This connection reads too slowly."), flush=False)

    def _push(self, message: Message, load: Load) -> None:
        load.add(message)
        self._queue.append(message)
        self._wake.set()


def _is_output(message: Message) -> bool:
    return message.channel == "iopub" and message.msg_type in OUTPUT and not message.authored
