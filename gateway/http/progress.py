"""How far a client has read: asked by pings between messages, which every WebSocket client answers."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.http.frames import Frames
    from gateway.models import Message

# Of messages that come close upon each other, only each of so many has a ping of its own, and the last.
TOGETHER = 8
# A message as small as this arrives with the ping before it, or not at all.
SMALL_BYTES = 4096
# What came so soon after a ping has none of its own, and is asked for after this time.
SOON_S = 0.01
# A client that answers none of so many is not asked more.
MAX_ASKED = 1000


class Progress:
    """Asks one client what it has read, and tells `confirm` the offset up to which it has.

    The ping goes before its message: many clients answer pings only while they read on to a message, and read
    no further than to the last one that they wait for.
    """

    def __init__(self, frames: Frames, confirm: Callable[[int], None]) -> None:
        self._frames = frames
        self._confirm = confirm
        self._written = 0
        self._last_asked = 0
        self._asked_at = 0.0
        self._together = 0
        self._half_done = ""
        self._asked: deque[int] = deque()
        self._news = asyncio.Event()

    def before(self, message: Message, *, last: bool, missed: bool) -> None:
        """Ask for a message that is about to be written, where it has a ping of its own.

        `last` says that no other waits behind it, `missed` that it was said when its client was away.
        """
        self._together += 1
        ends = self._ends(message)
        # told of a restart, a page connects anew at once, and would be told again
        own = message.authored and message.msg_type == "status"
        if message.size <= SMALL_BYTES and (
            ends or own or missed or self._together >= TOGETHER or (last and self._is_quiet())
        ):
            self._ask(message.offset)

    def wrote(self, message: Message) -> None:
        """Note that a message was written in full."""
        self._written = max(self._written, message.offset)
        if self._written > self._last_asked:
            self._news.set()

    async def ask(self) -> None:
        """Ask for what was written without a ping of its own, a little later, until cancelled."""
        with suppress(ConnectionError):
            while True:
                await self._news.wait()
                await asyncio.sleep(SOON_S)
                self._news.clear()
                self._ask(self._written)
                await self._frames.flush()

    def pong(self, data: bytes) -> None:
        """Take a pong: it answers a ping and all before it. Others, the heartbeat's say, mean nothing."""
        answered = next((offset for offset in self._asked if b"%d" % offset == data), None)
        if answered is not None:
            while self._asked and self._asked[0] <= answered:
                self._asked.popleft()
            self._confirm(answered)

    def _ask(self, offset: int) -> None:
        if offset > self._last_asked and len(self._asked) < MAX_ASKED:
            self._together = 0
            self._asked_at = asyncio.get_running_loop().time()
            self._last_asked = offset
            self._asked.append(offset)
            self._frames.ping(b"%d" % offset)

    def _is_quiet(self) -> bool:
        return asyncio.get_running_loop().time() - self._asked_at >= SOON_S

    def _ends(self, message: Message) -> bool:
        """Tell whether a request is done with this message: most clients wait for that and no more."""
        if message.channel == "iopub" and (message.msg_type != "status" or b"idle" not in message.content):
            return False
        ended = self._half_done == message.parent_id
        self._half_done = "" if ended else message.parent_id
        return ended
