"""One connection to a kernel's socket, with libzmq behind it and a filter between the two."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import struct
from collections.abc import Callable
from typing import Any, cast

import zmq

from gateway.protocol.zmtp import MessageFilter, NotZmtp

# what is read at once
CHUNK_BYTES = 64 << 10
# how fast one kernel is read in the long run, which leaves time for the others, and what it may bring at
# full speed before that holds; see `MessageFilter.cost`
BYTES_PER_S, BURST_BYTES = 12 << 20, 32 << 20
# what a second of work on its messages counts, so that many small ones take 2/5 of the time in the long run
BYTES_PER_WORKED_S = BYTES_PER_S * 5 // 2
# libzmq connects in a thread of its own, unless it finds no descriptor
CONNECT_S = 5.0
# what may be with libzmq beside one message
AHEAD_BYTES = 1 << 20
# why a side is not read: the other is not there yet or takes nothing more, the kernel brings too much for
# now, or what it brought has not been taken out of libzmq
OPENING, FULL, PACE, AHEAD = "opening", "full", "pace", "ahead"

OnDropped = Callable[[], None]
OnClosed = Callable[[str], None]


class Pace:
    """How much one kernel has brought lately, on all its channels: a leaky bucket.

    What comes another way has a pace of its own, a `share` of this one.
    """

    def __init__(self, clock: Callable[[], float], *, share: float = 1.0) -> None:
        self._clock = clock
        self._share = share
        self._level = 0.0
        self._at = clock()

    def worked(self, seconds: float) -> None:
        """Take note of time that went into the kernel's messages."""
        self._level += seconds * BYTES_PER_WORKED_S

    def spend(self, cost: int) -> float:
        """Take note of what came, and return for how many seconds nothing more is to be read."""
        now = self._clock()
        rate = BYTES_PER_S * self._share
        self._level = max(0.0, self._level - (now - self._at) * rate) + cost
        self._at = now
        return max(0.0, self._level - BURST_BYTES * self._share) / rate


class Gate:
    """Carries bytes between a kernel and a socket of libzmq's; owns both connections.

    What the kernel sends is filtered and paced. Each side is read only while the other takes what it is
    given. `on_dropped` is told of a message that was kept back, `on_closed` why the connection has ended.
    """

    def __init__(
        self,
        message_filter: MessageFilter,
        pace: Pace,
        buffer: memoryview,
        *,
        on_dropped: OnDropped,
        on_closed: OnClosed,
    ) -> None:
        """`buffer` takes what is read until it is looked at, which is at once: one serves all gates."""
        self._loop = asyncio.get_running_loop()
        self._filter = message_filter
        self._pace = pace
        self._on_dropped = on_dropped
        self._on_closed = on_closed
        self._kernel = _Side(buffer, self._from_kernel, self._ended)
        self._libzmq = _Side(buffer, self._from_libzmq, self._ended)
        self._kernel.other, self._libzmq.other = self._libzmq, self._kernel
        self._pause: asyncio.TimerHandle | None = None
        self._taken = self._ahead = 0
        self._closed = False

    async def open(self, door: str, behind: zmq.Socket[Any]) -> None:
        """Connect to the kernel's socket and let libzmq connect to this side. Raises OSError."""
        kernel = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            kernel.connect(door)
            libzmq = await self._accept(behind)
        except BaseException:
            kernel.close()
            raise
        try:
            await self._loop.create_unix_connection(lambda: self._kernel, sock=kernel)
        except BaseException:
            libzmq.close()
            raise
        await self._loop.connect_accepted_socket(lambda: self._libzmq, sock=libzmq)
        self._kernel.release(OPENING)
        self._libzmq.release(OPENING)

    def taken(self) -> None:
        """Note that a message has been taken out of libzmq."""
        self._taken += 1
        if self._taken >= self._filter.passed:
            self._ahead = 0
            self._kernel.release(AHEAD)

    def close(self) -> None:
        """Close both connections and tell nobody. Closing twice is harmless."""
        self._closed = True
        if self._pause:
            self._pause.cancel()
        self._kernel.abort()
        self._libzmq.abort()

    async def _accept(self, behind: zmq.Socket[Any]) -> socket.socket:
        name = f"cellblock-{secrets.token_hex(16)}"
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as listener:
            listener.bind(f"\0{name}")
            listener.listen()
            behind.connect(f"ipc://@{name}")
            async with asyncio.timeout(CONNECT_S):
                while True:
                    connected, _ = await self._loop.sock_accept(listener)
                    # the names of abstract sockets are everybody's to read
                    if peer_pid(connected) == os.getpid():
                        return connected
                    connected.close()

    def _from_kernel(self, data: bytes) -> None:
        before, dropped = self._filter.cost, self._filter.dropped
        try:
            for piece in self._filter.feed(data):
                self._ahead += len(piece)
                self._libzmq.write(piece)
        except NotZmtp as error:
            self._ended(str(error))
            return
        for _ in range(self._filter.dropped - dropped):
            self._on_dropped()
        if self._ahead > AHEAD_BYTES and self._taken < self._filter.passed:
            self._kernel.hold(AHEAD)
        if wait_s := self._pace.spend(self._filter.cost - before):
            self._kernel.hold(PACE)
            self._pause = self._loop.call_later(wait_s, self._kernel.release, PACE)

    def _from_libzmq(self, data: bytes) -> None:
        self._kernel.write(data)

    def _ended(self, reason: str) -> None:
        if not self._closed:
            self.close()
            self._on_closed(reason)


class _Side(asyncio.BufferedProtocol):
    """One of a gate's two connections: read while nothing holds it, and while the other side keeps up."""

    other: _Side

    def __init__(
        self, buffer: memoryview, on_data: Callable[[bytes], None], on_ended: Callable[[str], None]
    ) -> None:
        self._on_data = on_data
        self._on_ended = on_ended
        self._buffer = buffer
        self._transport: asyncio.Transport | None = None
        self._holds = {OPENING}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        # at once would be too soon: Python 3.11 begins to read after this all the same
        asyncio.get_running_loop().call_soon(self._begin)

    def connection_lost(self, _exc: Exception | None) -> None:
        self._on_ended("The connection was closed.")

    def get_buffer(self, _sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        self._on_data(bytes(self._buffer[:nbytes]))

    def pause_writing(self) -> None:
        self.other.hold(FULL)

    def resume_writing(self) -> None:
        self.other.release(FULL)

    def write(self, data: bytes) -> None:
        if self._transport:
            self._transport.write(data)

    def hold(self, why: str) -> None:
        if not self._holds and self._transport:
            self._transport.pause_reading()
        self._holds.add(why)

    def release(self, why: str) -> None:
        self._holds.discard(why)
        if not self._holds and self._transport and not self._transport.is_closing():
            self._transport.resume_reading()

    def abort(self) -> None:
        if self._transport:
            self._transport.abort()

    def _begin(self) -> None:
        if self._holds and self._transport:
            self._transport.pause_reading()


def peer_pid(connected: socket.socket) -> int:
    """Return the process at the other end of a unix socket."""
    credentials = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", credentials)[0])
