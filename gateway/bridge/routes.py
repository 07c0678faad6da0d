"""Who asked what: the requests of local clients that the kernel has not answered in full."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from gateway.errors import LimitReached
from gateway.protocol.messages import MalformedMessage, content

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gateway.bridge.sockets import Incoming
    from gateway.models import Message

MAX_PENDING = 1000


@dataclass(slots=True)
class Asked:
    """A request: its headers, who asked, in which connection, and what has come back of it so far."""

    request: Message
    identity: list[bytes]
    connection: int
    replied: bool = False
    idle: bool = False
    failed: bool = False
    execution_count: int | None = None

    @property
    def executes(self) -> bool:
        """Whether this is an execution."""
        return self.request.msg_type == "execute_request"

    @property
    def wants_reply(self) -> bool:
        """Whether the protocol has a reply to it; comm messages have none."""
        return self.request.msg_type.endswith("_request")

    @property
    def over(self) -> bool:
        """Whether nothing more is to come: on control, the reply is the last of it."""
        done = self.replied or not self.wants_reply
        return done and (self.idle or self.request.channel == "control")


class Routes:
    """Requests by msg_id, until they are answered in full."""

    def __init__(self, *, most: int = MAX_PENDING) -> None:
        self._most = most
        self._asked: dict[str, Asked] = {}

    def __iter__(self) -> Iterator[Asked]:
        return iter(list(self._asked.values()))

    def __len__(self) -> int:
        return len(self._asked)

    def get(self, msg_id: str) -> Asked | None:
        """Return who asked a request, while it is not answered in full."""
        return self._asked.get(msg_id)

    def add(self, incoming: Incoming, connection: int) -> Asked:
        """Note a request. Raises LimitReached."""
        if len(self._asked) >= self._most:
            raise LimitReached("Too many requests are waiting for this kernel.", retry_after_s=1)
        # what was asked may be large, and only its headers are needed again
        request = replace(incoming.message, content=b"{}", metadata=b"{}", buffers=[])
        asked = self._asked[request.msg_id] = Asked(request, incoming.identity, connection)
        return asked

    def note(self, message: Message) -> Asked | None:
        """Note what comes back, and return the request that it belongs to."""
        asked = self._asked.get(message.parent_id)
        if asked is None:
            return None
        if message.channel == "iopub":
            _note_output(asked, message)
        elif message.channel == asked.request.channel:
            asked.replied = True
        if asked.over:
            self.forget(asked)
        return asked

    def forget(self, asked: Asked) -> None:
        """Wait for nothing more."""
        self._asked.pop(asked.request.msg_id, None)

    def older_than(self, connection: int) -> list[Asked]:
        """List what was asked in earlier connections, oldest first."""
        return [asked for asked in self if asked.connection < connection]


def _note_output(asked: Asked, message: Message) -> None:
    if message.msg_type == "status":
        asked.idle = asked.idle or b'"idle"' in message.content
    elif message.msg_type == "error":
        asked.failed = True
    elif message.msg_type == "execute_input":
        try:
            count = content(message).get("execution_count")
        except MalformedMessage:
            return
        asked.execution_count = count if isinstance(count, int) else None
