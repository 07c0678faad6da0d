"""One connection to a kernel's socket: opened by libzmq, then read and written here, message by message."""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, cast

import zmq

from gateway.errors import LimitReached
from gateway.kernels.opening import Opening
from gateway.kernels.pace import Pace
from gateway.protocol.zmtp import Handshake, MessageReader, NotZmtp, framed

# what is read at once
CHUNK_BYTES = 64 << 10
# what a kernel's messages take of a turn of the loop
SLICE_S = 0.001
# a kernel that has brought little so many times, each time so soon after the last, is let alone for a moment:
# several small messages that are read together cost little more than one
SMALL_BYTES, OFTEN, SOON_S, MOMENT_S = 16 << 10, 16, 0.001, 0.002
# what waits for a kernel that does not read; a message alone may be larger
WAITING_MESSAGES, WAITING_BYTES = 1000, 32 << 20

OnMessage = Callable[[list[bytes]], None]
OnDropped = Callable[[], None]
OnClosed = Callable[[str], None]


class Gate(asyncio.BufferedProtocol):
    """The way to one of a kernel's sockets; owns the connection.

    What the kernel sends is bounded and paced: its messages go to `on_message` in parts, a slice of a turn of
    the loop at a time. `on_dropped` is told of each that was too large, `on_closed` why the connection has
    ended.
    """

    def __init__(
        self,
        reader: MessageReader,
        pace: Pace,
        buffer: memoryview,
        *,
        on_message: OnMessage,
        on_dropped: OnDropped,
        on_closed: OnClosed,
    ) -> None:
        """`buffer` takes what is read until it is looked at, which is at once: one serves all gates."""
        self._loop = asyncio.get_running_loop()
        self._reader = reader
        self._pace = pace
        self._buffer = buffer
        self._on_message = on_message
        self._on_dropped = on_dropped
        self._on_closed = on_closed
        self._transport: asyncio.Transport | None = None
        self._greeted = Handshake()
        self._opening: Opening | None = None
        self._early = b""
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._full = False
        self._dropped = self._spent = 0
        self._often = 0
        self._looked = self._loop.time()
        self._pause: asyncio.Handle | None = None
        self._closed = False

    async def open(self, door: str, behind: zmq.Socket[Any]) -> None:
        """Connect to the kernel's socket, and have a socket of libzmq's, now ours, make the handshake.

        That goes on afterwards, since a kernel that is frozen takes no part in it. Raises OSError,
        TimeoutError and zmq.ZMQError.
        """
        self._opening = Opening(behind, self._pass_on, self._ended)
        kernel = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            kernel.connect(door)
            await self._opening.begin()
            await self._loop.create_unix_connection(lambda: self, sock=kernel)
        except BaseException:
            kernel.close()
            self.close()
            raise

    def send(self, parts: Sequence[bytes]) -> None:
        """Send a message, at once or when the kernel takes it. Raises LimitReached: too many wait already."""
        wire = framed(parts)
        if self._transport and not (self._opening or self._full):
            self._transport.write(wire)
            return
        size = self._waiting_bytes + len(wire)
        if self._waiting and (len(self._waiting) >= WAITING_MESSAGES or size > WAITING_BYTES):
            raise LimitReached("The kernel takes no more requests for now.", retry_after_s=1)
        self._waiting.append(wire)
        self._waiting_bytes = size

    def close(self) -> None:
        """Close the connection and tell nobody. Closing twice is harmless."""
        self._closed = True
        if self._pause:
            self._pause.cancel()
        if self._opening:
            self._opening.close()
        if self._transport:
            self._transport.abort()

    # -- the connection -----------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take note of the connection."""
        self._transport = cast("asyncio.Transport", transport)
        if self._closed:
            self._transport.abort()
        self._transport.write(self._early)

    def connection_lost(self, _error: Exception | None) -> None:
        """Tell of the end."""
        self._ended("The connection was closed.")

    def get_buffer(self, _sizehint: int) -> memoryview:
        """Give what is read into."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Look at what was read."""
        data = bytes(self._buffer[:nbytes])
        if self._opening:
            self._greet(self._opening, data)
        else:
            self._reader.feed(data)
            self._deliver()

    def pause_writing(self) -> None:
        """Let what is sent wait: the kernel takes nothing more for now."""
        self._full = True

    def resume_writing(self) -> None:
        """Send what waits."""
        self._full = False
        while self._waiting and self._transport and not (self._opening or self._full):
            wire = self._waiting.popleft()
            self._waiting_bytes -= len(wire)
            self._transport.write(wire)

    # -- the handshake ------------------------------------------------------------------------------------

    def _greet(self, opening: Opening, data: bytes) -> None:
        """Pass on what the kernel says in the handshake, and keep what follows."""
        try:
            passed, rest = (b"", data) if self._greeted.over else self._greeted.feed(data)
        except NotZmtp as error:
            self._ended(str(error))
            return
        opening.write(passed)
        if self._greeted.over and self._transport:
            self._reader.feed(rest)
            self._transport.pause_reading()
            self._take_over(opening)

    def _pass_on(self, data: bytes) -> None:
        """Pass on what libzmq says in the handshake."""
        if self._transport:
            self._transport.write(data)
        else:
            self._early += data
        if self._opening:
            self._take_over(self._opening)

    def _take_over(self, opening: Opening) -> None:
        """Let libzmq go once both have said what there is to say, and read and write from now on."""
        if not (self._greeted.over and opening.over):
            return
        self._opening = None
        opening.close()
        self.resume_writing()
        self._deliver()

    # -- messages -----------------------------------------------------------------------------------------

    def _deliver(self) -> None:
        """Hand on what has come, for a slice of time: others get their turn before the rest."""
        self._pause = None
        begun = now = self._loop.time()
        more, count = True, 0
        try:
            while more and now - begun < SLICE_S:
                parts = self._reader.take()
                if parts:
                    count += 1
                    self._on_message(parts)
                else:
                    more = parts is not None
                    self._answer()
                if self._closed:
                    return
                now = self._loop.time()
        except NotZmtp as error:
            self._ended(str(error))
            return
        self._pace.worked(now - begun)
        cost, self._spent = self._reader.cost - self._spent, self._reader.cost
        wait_s = self._pace.spend(cost, count)
        if count and not (more or wait_s):
            wait_s = self._lull(cost, begun)
        if not self._transport:
            return
        if more or wait_s:
            self._transport.pause_reading()
            self._pause = self._loop.call_later(wait_s, self._deliver)
        else:
            self._transport.resume_reading()

    def _lull(self, cost: int, at: float) -> float:
        """Return for how many seconds a kernel that brings little and often is let alone."""
        soon = at - self._looked < SOON_S + (2 * MOMENT_S if self._often >= OFTEN else 0.0)
        self._often = self._often + 1 if soon and cost < SMALL_BYTES else 0
        self._looked = at
        return MOMENT_S if self._often >= OFTEN else 0.0

    def _answer(self) -> None:
        """Tell of messages that were dropped, and answer pings unless the answers are not read."""
        while self._dropped < self._reader.dropped:
            self._dropped += 1
            self._on_dropped()
        if self._reader.answers:
            if self._transport and not self._full:
                self._transport.write(b"".join(self._reader.answers))
            self._reader.answers.clear()

    def _ended(self, reason: str) -> None:
        if not self._closed:
            self.close()
            self._on_closed(reason)
