"""How a connection to a kernel's socket begins: libzmq makes the handshake, and leaves."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import struct
from collections.abc import Callable
from typing import Any, cast

import zmq

from gateway.protocol.zmtp import Handshake

# libzmq connects in a thread of its own, unless it finds no descriptor
CONNECT_S = 5.0


class Opening(asyncio.Protocol):
    """libzmq's end of a handshake; owns its socket, and the stream to it."""

    def __init__(
        self, behind: zmq.Socket[Any], on_data: Callable[[bytes], None], on_ended: Callable[[str], None]
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._behind = behind
        self._on_data = on_data
        self._on_ended = on_ended
        # a subscriber says what it subscribes to, at once
        self._said = Handshake(more=int(behind.type == zmq.SUB))
        self._transport: asyncio.Transport | None = None

    @property
    def over(self) -> bool:
        """Whether libzmq has said all that it has to say."""
        return self._said.over

    async def begin(self) -> None:
        """Let libzmq connect to this end. Raises OSError, TimeoutError and zmq.ZMQError."""
        libzmq = await self._accept()
        await self._loop.connect_accepted_socket(lambda: self, sock=libzmq)

    def write(self, data: bytes) -> None:
        """Pass on what the kernel says."""
        if self._transport:
            self._transport.write(data)

    def close(self) -> None:
        """Let libzmq go, and tell nobody. Closing twice is harmless."""
        if self._transport:
            self._transport.abort()
        if not self._behind.closed:
            self._behind.close(0)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take note of the stream."""
        self._transport = cast("asyncio.Transport", transport)
        if self._behind.closed:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """Pass on what libzmq says."""
        if not self._behind.closed:
            self._said.feed(data)
            self._on_data(data)

    def connection_lost(self, _error: Exception | None) -> None:
        """Tell that libzmq will have nothing to do with this kernel."""
        if not self._behind.closed:
            self._on_ended("The connection was closed.")

    async def _accept(self) -> socket.socket:
        name = f"cellblock-{secrets.token_hex(16)}"
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as listener:
            listener.bind(f"\0{name}")
            listener.listen()
            self._behind.connect(f"ipc://@{name}")
            async with asyncio.timeout(CONNECT_S):
                while True:
                    connected, _ = await self._loop.sock_accept(listener)
                    # the names of abstract sockets are everybody's to read
                    if peer_pid(connected) == os.getpid():
                        return connected
                    connected.close()


def peer_pid(connected: socket.socket) -> int:
    """Return the process at the other end of a unix socket."""
    credentials = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", credentials)[0])
