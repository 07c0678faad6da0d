"""The ZMQ channels of one kernel, read on the event loop without threads."""

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

from gateway.kernels.gate import Gate, Pace
from gateway.models import CHANNELS, Channel, Message
from gateway.protocol.messages import MAX_BUFFERS, MAX_IDENTS, MalformedMessage, Signer, parse, to_frames
from gateway.protocol.zmtp import MessageFilter

# messages taken from one socket before other kernels get their turn
BATCH = 4
MAX_FRAMES = MAX_IDENTS + 6 + MAX_BUFFERS

OnMessage = Callable[[Message], None]
OnDropped = Callable[[Channel, str], None]
OnLost = Callable[[Channel, str], None]


def make_context(max_sockets: int, max_message_bytes: int) -> zmq.Context[zmq.Socket[bytes]]:
    """Return the one ZMQ context of a gateway, with what holds for every socket of it."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    context.set(zmq.MAX_SOCKETS, max_sockets)
    context.setsockopt(zmq.LINGER, 0)
    # each is connected to a gate, once
    context.setsockopt(zmq.RECONNECT_IVL, -1)
    context.setsockopt(zmq.MAXMSGSIZE, max_message_bytes)
    # few, since each may be as large as a message may be: the rest waits in the cell, at its expense
    context.setsockopt(zmq.RCVHWM, 2)
    context.setsockopt(zmq.SNDHWM, 1000)
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
    """Four sockets of one kernel, each behind a gate; owns them.

    Good messages go to `on_message`, others to `on_dropped`. `on_lost` is told why a connection has ended:
    the kernel has died, or closed it, or does not speak ZMTP.
    """

    def __init__(
        self,
        context: zmq.Context[Any],
        buffer: memoryview,
        connection: dict[str, Any],
        *,
        on_message: OnMessage,
        on_dropped: OnDropped,
        on_too_large: Callable[[Channel], None],
        on_lost: OnLost,
        max_bytes: int,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._signer = Signer(connection["key"].encode())
        self._on_message = on_message
        self._on_dropped = on_dropped
        self._on_too_large = on_too_large
        self._on_lost = on_lost
        self._max_bytes = max_bytes
        self._context = context
        self._buffer = buffer
        self._connection = connection
        self._pace = Pace(self._loop.time)
        self._sockets: dict[Channel, zmq.Socket[bytes]] = {}
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
        """Send one message on its channel.

        Raises:
            zmq.Again: the kernel takes no more for now.
        """
        socket = self._sockets[message.channel]
        socket.send_multipart(to_frames(message, self._signer), zmq.NOBLOCK)
        # sending may swallow the edge that would have told of something to read
        self._loop.call_soon(self._read, message.channel, socket)

    def close(self) -> None:
        """Close the sockets. Closing twice is harmless."""
        for gate in self._gates.values():
            gate.close()
        for socket in self._sockets.values():
            if not socket.closed:
                self._loop.remove_reader(socket.fileno())
                socket.close(0)

    async def _open(self, channel: Channel) -> None:
        socket = self._sockets[channel] = self._context.socket(channel_socket_types[channel])
        if channel == "iopub":
            socket.subscribe(b"")
        else:
            socket.identity = self._identity
        gate = self._gates[channel] = Gate(
            MessageFilter(max_bytes=self._max_bytes, max_parts=MAX_FRAMES),
            self._pace,
            self._buffer,
            on_dropped=partial(self._too_large, channel),
            on_closed=partial(self._on_lost, channel),
        )
        descriptor = door(f"{self._connection['ip']}-{self._connection[f'{channel}_port']}")
        try:
            await gate.open(f"/proc/self/fd/{descriptor}", socket)
        finally:
            os.close(descriptor)
        self._loop.add_reader(socket.fileno(), self._read, channel, socket)
        # a socket tells of news only to who has looked and found none
        self._loop.call_soon(self._read, channel, socket)

    def _too_large(self, channel: Channel) -> None:
        self._on_dropped(channel, "The message is too large.")
        self._on_too_large(channel)

    def _read(self, channel: Channel, socket: zmq.Socket[bytes]) -> None:
        begun = self._loop.time()
        more = self._take(channel, socket)
        self._pace.worked(self._loop.time() - begun)
        if more:
            # others get their turn between
            self._loop.call_soon(self._read, channel, socket)

    def _take(self, channel: Channel, socket: zmq.Socket[bytes]) -> bool:
        """Take a few messages out of a socket, and tell whether there may be more."""
        for _ in range(BATCH):
            if socket.closed:
                return False
            try:
                frames = socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return False
            except zmq.ZMQError as error:
                self._on_dropped(channel, f"Receiving failed: {error}.")
                return False
            self._gates[channel].taken()
            try:
                message = parse(frames, channel, self._signer, max_bytes=self._max_bytes)
            except MalformedMessage as error:
                self._on_dropped(channel, str(error))
            else:
                self._on_message(message)
        return True
