"""The ZMQ channels of one kernel, opened by libzmq, and read and written on the event loop."""

from __future__ import annotations

import asyncio
import errno
import os
import stat
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import zmq
from jupyter_client.connect import channel_socket_types

from gateway.kernels.gate import Gate
from gateway.kernels.pace import Company, Pace
from gateway.models import CHANNELS, Channel, Message
from gateway.protocol.messages import MAX_BUFFERS, MAX_IDENTS, MalformedMessage, Signer, parse, to_frames
from gateway.protocol.zmtp import MessageReader

MAX_FRAMES = MAX_IDENTS + 6 + MAX_BUFFERS

OnMessage = Callable[[Message], None]
OnDropped = Callable[[Channel, str], None]
OnLost = Callable[[Channel, str], None]


def make_context(max_sockets: int) -> zmq.Context[zmq.Socket[bytes]]:
    """Return the one ZMQ context of a gateway, whose sockets make a handshake each and are gone."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    context.set(zmq.MAX_SOCKETS, max_sockets)
    context.setsockopt(zmq.LINGER, 0)
    # each is connected to a gate, once
    context.setsockopt(zmq.RECONNECT_IVL, -1)
    # a kernel that is frozen greets when it goes on
    context.setsockopt(zmq.HANDSHAKE_IVL, 0)
    return context


def bound(ip: str) -> bool:
    """Tell whether a kernel has bound its five sockets, each of them a socket and no link."""
    for port in range(1, 6):
        try:
            if not stat.S_ISSOCK(os.lstat(f"{ip}-{port}").st_mode):
                return False
        except OSError:
            return False
    return True


def door(name: str) -> int:
    """Return a descriptor of a bound socket, for the path by which to connect to that and to nothing else.

    Between a look at a name and the connecting, its owner could put a link there. Raises OSError.
    """
    descriptor = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.ENOTSOCK, os.strerror(errno.ENOTSOCK))
    return descriptor


class KernelChannels:
    """Four connections to one kernel's sockets; owns them.

    Good messages go to `on_message`, others to `on_dropped`. `on_lost` is told why a connection has ended:
    the kernel has died, or closed it, or does not speak ZMTP.
    """

    def __init__(
        self,
        context: zmq.Context[Any],
        buffer: memoryview,
        company: Company,
        connection: dict[str, Any],
        *,
        on_message: OnMessage,
        on_dropped: OnDropped,
        on_too_large: Callable[[Channel], None],
        on_lost: OnLost,
        max_bytes: int,
    ) -> None:
        self._signer = Signer(connection["key"].encode())
        self._on_message = on_message
        self._on_dropped = on_dropped
        self._on_too_large = on_too_large
        self._on_lost = on_lost
        self._max_bytes = max_bytes
        self._context = context
        self._buffer = buffer
        self._connection = connection
        self._pace = Pace(asyncio.get_running_loop().time, company=company)
        self._gates: dict[Channel, Gate] = {}
        # a fixed identity: whoever adopts the kernel gets the replies that were meant for its predecessor
        self._identity = f"cellblock-{Path(connection['ip']).parent.parent.name}".encode()

    async def open(self) -> None:
        """Connect all channels. Raises OSError, TimeoutError and zmq.ZMQError where they cannot be had."""
        try:
            for channel in CHANNELS:
                await self._open(channel)
        except BaseException:
            self.close()
            raise

    def send(self, message: Message) -> None:
        """Send one message on its channel. Raises LimitReached: the kernel takes no more for now."""
        self._gates[message.channel].send(to_frames(message, self._signer))

    def close(self) -> None:
        """Close the connections. Closing twice is harmless."""
        for gate in self._gates.values():
            gate.close()

    async def _open(self, channel: Channel) -> None:
        gate = self._gates[channel] = Gate(
            MessageReader(max_bytes=self._max_bytes, max_parts=MAX_FRAMES),
            self._pace,
            self._buffer,
            on_message=partial(self._receive, channel),
            on_dropped=partial(self._too_large, channel),
            on_closed=partial(self._on_lost, channel),
        )
        descriptor = door(f"{self._connection['ip']}-{self._connection[f'{channel}_port']}")
        try:
            await gate.open(f"/proc/self/fd/{descriptor}", self._behind(channel))
        finally:
            os.close(descriptor)

    def _behind(self, channel: Channel) -> zmq.Socket[bytes]:
        """Return the socket that makes the handshake: a subscriber, or one that says who we are."""
        behind: zmq.Socket[bytes] = self._context.socket(channel_socket_types[channel])
        if channel == "iopub":
            behind.subscribe(b"")
        else:
            behind.identity = self._identity
        return behind

    def _too_large(self, channel: Channel) -> None:
        self._on_dropped(channel, "The message is too large.")
        self._on_too_large(channel)

    def _receive(self, channel: Channel, parts: list[bytes]) -> None:
        try:
            message = parse(parts, channel, self._signer, max_bytes=self._max_bytes)
        except MalformedMessage as error:
            self._on_dropped(channel, str(error))
        else:
            self._on_message(message)
