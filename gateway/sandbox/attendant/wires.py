"""The attendant's loop, and its end of the socket to the gateway.

A packet is a JSON object, a line feed, and bytes. A message that is longer than one packet takes several, all
but the last with `more`, and nothing else in between. Packets are whole or not there at all, so that the next
gateway can go on where one has died.
"""

import collections
import json
import os
import select
import socket
from collections.abc import Callable
from typing import Any

PIECE = 60 << 10
PACKET = 128 << 10

Handler = Callable[[int], None]


class Wires:
    """Waits for everything at once. `on_message(head, body)` takes what the gateway says.

    Sources are what brings bytes for the gateway: they are looked at only while the gateway takes them, so
    that a flood waits where it comes from.
    """

    def __init__(self, link: socket.socket, on_message: Callable[[dict[str, Any], bytes], None]) -> None:
        link.setblocking(False)
        self._link = link
        self._on_message = on_message
        self._out: collections.deque[bytes] = collections.deque()
        self._partial = bytearray()
        self._poll, self._sources = select.epoll(), select.epoll()
        self._handlers: dict[int, Handler] = {}
        self._readers: dict[int, Callable[[], None]] = {}
        self._blocked = False
        self._poll.register(self._sources.fileno(), select.EPOLLIN)
        self.watch(link.fileno(), select.EPOLLIN, self._on_link)

    def turn(self, timeout_s: float | None) -> None:
        """Wait for something and do what there is to do."""
        for descriptor, events in self._poll.poll(timeout_s):
            if descriptor == self._sources.fileno():
                self._read_sources()
            elif handler := self._handlers.get(descriptor):
                handler(events)
        self.flush()

    def watch(self, descriptor: int, events: int, handler: Handler) -> None:
        """Call back when something happens to a descriptor."""
        if descriptor in self._handlers:
            self._poll.modify(descriptor, events)
        else:
            self._poll.register(descriptor, events)
        self._handlers[descriptor] = handler

    def unwatch(self, descriptor: int) -> None:
        """Look at a descriptor no more, if it is looked at; always before it is closed."""
        if self._handlers.pop(descriptor, None):
            self._poll.unregister(descriptor)

    def source(self, descriptor: int, reader: Callable[[], None]) -> None:
        """Call back when a source has something and the gateway takes it."""
        self._sources.register(descriptor, select.EPOLLIN)
        self._readers[descriptor] = reader

    def unsource(self, descriptor: int) -> None:
        """Look at a source no more, if it is looked at."""
        if self._readers.pop(descriptor, None):
            self._sources.unregister(descriptor)

    def say(self, head: dict[str, Any], body: bytes = b"") -> None:
        """Send a message, in as many packets as it takes."""
        for start in range(0, max(1, len(body)), PIECE):
            more = {"more": True} if start + PIECE < len(body) else {}
            self._out.append(json.dumps({**head, **more}).encode() + b"\n" + body[start : start + PIECE])

    def flush(self) -> None:
        """Send what waits, as far as it is taken."""
        while self._out:
            try:
                self._link.send(self._out[0], socket.MSG_NOSIGNAL)
            except BlockingIOError:
                break
            except OSError:
                # nobody is left to serve
                os._exit(0)
            self._out.popleft()
        if bool(self._out) is not self._blocked:
            self._blocked = bool(self._out)
            self._poll.modify(self._sources.fileno(), 0 if self._blocked else select.EPOLLIN)
            events = select.EPOLLIN | (select.EPOLLOUT if self._blocked else 0)
            self._poll.modify(self._link.fileno(), events)

    def _read_sources(self) -> None:
        for descriptor, _ in self._sources.poll(0):
            if self._out:
                return
            if reader := self._readers.get(descriptor):
                reader()
            self.flush()

    def _on_link(self, events: int) -> None:
        if not events & ~select.EPOLLOUT:
            return
        try:
            packet = self._link.recv(PACKET)
        except BlockingIOError:
            return
        if not packet:
            os._exit(0)
        head, _, piece = packet.partition(b"\n")
        message = json.loads(head)
        self._partial += piece
        if not message.get("more"):
            body, self._partial = bytes(self._partial), bytearray()
            self._on_message(message, body)
