"""What becomes of an execution's output once it has sent more than is passed on: a mark, and the tail."""

from __future__ import annotations

from collections import deque

from gateway.models import Message

OUTPUT = frozenset({"stream", "display_data", "update_display_data", "execute_result"})
TAIL_BYTES = 256 << 10


# of what is passed on, this part may be text: JupyterLab draws all text of a cell anew with each message
TEXT_SHARE = 4


class Overflow:
    """Counts one execution's output; beyond `limit` bytes only the last of it is kept, for the end."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._passed = self._text = 0
        self._tail: deque[Message] = deque()
        self._tail_bytes = 0
        self._cut_bytes = 0

    def passes(self, message: Message) -> bool:
        """Tell whether a message is passed on now; output beyond the limit is kept back or cut."""
        if message.msg_type not in OUTPUT:
            return True
        self._passed += message.size
        self._text += message.size if message.msg_type == "stream" else 0
        if self._passed <= self._limit and self._text <= self._limit // TEXT_SHARE:
            return True
        self._tail.append(message)
        self._tail_bytes += message.size
        while self._tail_bytes > TAIL_BYTES:
            oldest = self._tail.popleft()
            self._tail_bytes -= oldest.size
            self._cut_bytes += oldest.size
        return False

    def end(self) -> tuple[int, list[Message]]:
        """Return how many bytes were cut, and the tail that was kept back; afterwards there is none."""
        cut, tail = self._cut_bytes, list(self._tail)
        self._cut_bytes = self._tail_bytes = 0
        self._tail.clear()
        return cut, tail
