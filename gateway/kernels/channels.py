"""The ZMQ channels of one kernel, read on the event loop without threads."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import zmq
from jupyter_client.connect import ConnectionFileMixin, KernelConnectionInfo

from gateway.models import CHANNELS, Channel, Message
from gateway.protocol.messages import MAX_BUFFERS, MAX_IDENTS, MalformedMessage, Signer, parse, to_frames

# messages taken from one socket before other kernels get their turn
BATCH = 64
MAX_FRAMES = MAX_IDENTS + 6 + MAX_BUFFERS

OnMessage = Callable[[Message], None]
OnDropped = Callable[[Channel, str], None]


def make_context(max_sockets: int, max_message_bytes: int) -> zmq.Context[zmq.Socket[bytes]]:
    """Return the one ZMQ context of a gateway, with what holds for every socket of it.

    A socket never reconnects by itself: the cell could have put a link where its socket was.
    """
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    context.set(zmq.MAX_SOCKETS, max_sockets)
    context.setsockopt(zmq.LINGER, 0)
    context.setsockopt(zmq.RECONNECT_IVL, -1)
    context.setsockopt(zmq.MAXMSGSIZE, max_message_bytes)
    context.setsockopt(zmq.RCVHWM, 1000)
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


class KernelChannels:
    """Four sockets of one kernel; owns them. Good messages go to `on_message`, others to `on_dropped`."""

    def __init__(
        self,
        context: zmq.Context[Any],
        connection: dict[str, Any],
        *,
        on_message: OnMessage,
        on_dropped: OnDropped,
        max_bytes: int,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._signer = Signer(connection["key"].encode())
        self._on_message = on_message
        self._on_dropped = on_dropped
        self._max_bytes = max_bytes
        self._sockets: dict[Channel, zmq.Socket[bytes]] = {}
        # a fixed identity: whoever adopts the kernel gets the replies that were meant for its predecessor
        identity = f"cellblock-{Path(connection['ip']).parent.parent.name}".encode()
        maker = ConnectionFileMixin(context=context)
        maker.load_connection_info(cast("KernelConnectionInfo", connection))
        try:
            for channel in CHANNELS:
                connect = getattr(maker, f"connect_{channel}")
                self._sockets[channel] = connect() if channel == "iopub" else connect(identity=identity)
        except zmq.ZMQError:
            self.close()
            raise
        for channel, socket in self._sockets.items():
            self._loop.add_reader(socket.fileno(), self._read, channel, socket)
            self._loop.call_soon(self._read, channel, socket)

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
        for socket in self._sockets.values():
            self._loop.remove_reader(socket.fileno())
            socket.close(0)
        self._sockets.clear()

    def _read(self, channel: Channel, socket: zmq.Socket[bytes]) -> None:
        for _ in range(BATCH):
            if socket.closed:
                return
            try:
                frames = receive(socket)
            except zmq.Again:
                return
            except zmq.ZMQError as error:
                self._on_dropped(channel, f"receiving failed: {error}")
                return
            try:
                message = parse(frames, channel, self._signer, max_bytes=self._max_bytes)
            except MalformedMessage as error:
                self._on_dropped(channel, str(error))
            else:
                self._on_message(message)
        self._loop.call_soon(self._read, channel, socket)


def receive(socket: zmq.Socket[bytes]) -> list[bytes]:
    """Receive one multipart message and keep no more than a message may have of it. Raises zmq.Again."""
    frames = [socket.recv(zmq.NOBLOCK)]
    while socket.getsockopt(zmq.RCVMORE):
        frame = socket.recv(zmq.NOBLOCK)
        if len(frames) <= MAX_FRAMES:
            frames.append(frame)
    return frames
