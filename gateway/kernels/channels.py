"""The ZMQ channels of one kernel, read on the event loop without threads."""

from __future__ import annotations

import asyncio
import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zmq
from jupyter_client.connect import channel_socket_types

from gateway.models import CHANNELS, Channel, Message
from gateway.protocol.messages import MAX_BUFFERS, MAX_IDENTS, MalformedMessage, Signer, parse, to_frames

# messages and bytes taken from one socket before other kernels get their turn
BATCH, BATCH_BYTES = 64, 512 << 10
# how fast one channel of one kernel is read when it brings more than a batch at a time
BYTES_PER_S = 32 << 20
# how long what came before a lost connection is read
LOST_S = 0.05
MAX_FRAMES = MAX_IDENTS + 6 + MAX_BUFFERS

OnMessage = Callable[[Message], None]
OnDropped = Callable[[Channel, str], None]
OnLost = Callable[[], None]


def make_context(max_sockets: int, max_message_bytes: int) -> zmq.Context[zmq.Socket[bytes]]:
    """Return the one ZMQ context of a gateway, with what holds for every socket of it.

    A socket never reconnects by itself: the cell could have put a link where its socket was.
    """
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    context.set(zmq.MAX_SOCKETS, max_sockets)
    context.setsockopt(zmq.LINGER, 0)
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
    """Four sockets of one kernel; owns them. Good messages go to `on_message`, others to `on_dropped`.

    `on_lost` is called when iopub's connection is gone: the kernel has died, or sent too large a message.
    Raises OSError and zmq.ZMQError where the sockets cannot be had.
    """

    def __init__(
        self,
        context: zmq.Context[Any],
        connection: dict[str, Any],
        *,
        on_message: OnMessage,
        on_dropped: OnDropped,
        on_lost: OnLost,
        max_bytes: int,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._signer = Signer(connection["key"].encode())
        self._on_message = on_message
        self._on_dropped = on_dropped
        self._on_lost = on_lost
        self._max_bytes = max_bytes
        self._context = context
        self._connection = connection
        self._sockets: dict[Channel, zmq.Socket[bytes]] = {}
        self._doors: dict[Channel, int] = {}
        self._monitor: zmq.Socket[bytes] | None = None
        # a fixed identity: whoever adopts the kernel gets the replies that were meant for its predecessor
        self._identity = f"cellblock-{Path(connection['ip']).parent.parent.name}".encode()
        try:
            for channel in CHANNELS:
                self._open(channel)
            self._watch()
        except (OSError, zmq.ZMQError):
            self.close()
            raise

    def send(self, message: Message) -> None:
        """Send one message on its channel.

        Raises:
            zmq.Again: the kernel takes no more for now.
        """
        socket = self._sockets.get(message.channel)
        if socket is None:
            # it was lost, and could not be had again
            raise zmq.Again
        socket.send_multipart(to_frames(message, self._signer), zmq.NOBLOCK)
        # sending may swallow the edge that would have told of something to read
        self._loop.call_soon(self._read, message.channel, socket)

    def reopen(self, channel: Channel) -> None:
        """Connect a channel anew: libzmq drops the connection that brings too large a message.

        Raises OSError and zmq.ZMQError where that cannot be; the channel stays closed then.
        """
        if channel == "iopub":
            self._unwatch()
        self._shut(channel)
        self._open(channel)
        if channel == "iopub":
            self._watch()

    def close(self) -> None:
        """Close the sockets. Closing twice is harmless."""
        self._unwatch()
        for channel in CHANNELS:
            self._shut(channel)

    def _shut(self, channel: Channel) -> None:
        if socket := self._sockets.pop(channel, None):
            self._loop.remove_reader(socket.fileno())
            socket.close(0)
        if descriptor := self._doors.pop(channel, None):
            os.close(descriptor)

    def _open(self, channel: Channel) -> None:
        # held for as long as the socket, which connects in a thread of libzmq's
        self._doors[channel] = door(f"{self._connection['ip']}-{self._connection[f'{channel}_port']}")
        socket = self._sockets[channel] = self._context.socket(channel_socket_types[channel])
        if channel == "iopub":
            socket.subscribe(b"")
        else:
            socket.identity = self._identity
        socket.connect(f"ipc:///proc/self/fd/{self._doors[channel]}")
        self._loop.add_reader(socket.fileno(), self._read, channel, socket)
        self._loop.call_soon(self._read, channel, socket)

    def _watch(self) -> None:
        self._monitor = self._sockets["iopub"].get_monitor_socket(zmq.EVENT_DISCONNECTED)
        self._loop.add_reader(self._monitor.fileno(), self._disconnected, self._monitor)
        # a socket tells of news only to who has looked and found none
        self._loop.call_soon(self._disconnected, self._monitor)

    def _unwatch(self) -> None:
        if self._monitor:
            self._loop.remove_reader(self._monitor.fileno())
            self._sockets["iopub"].disable_monitor()
            self._monitor.close(0)
            self._monitor = None

    def _disconnected(self, monitor: zmq.Socket[bytes]) -> None:
        if monitor is self._monitor and int(monitor.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            monitor.recv_multipart(zmq.NOBLOCK)
            # what has come before is still to be read
            self._loop.call_later(LOST_S, self._tell_lost, monitor)

    def _tell_lost(self, monitor: zmq.Socket[bytes]) -> None:
        if monitor is self._monitor:
            self._on_lost()

    def _read(self, channel: Channel, socket: zmq.Socket[bytes]) -> None:
        taken = 0
        for _ in range(BATCH):
            if socket.closed or taken > BATCH_BYTES:
                break
            try:
                frames = receive(socket)
            except zmq.Again:
                return
            except zmq.ZMQError as error:
                self._on_dropped(channel, f"receiving failed: {error}")
                return
            taken += sum(map(len, frames))
            try:
                message = parse(frames, channel, self._signer, max_bytes=self._max_bytes)
            except MalformedMessage as error:
                self._on_dropped(channel, str(error))
            else:
                self._on_message(message)
        if socket.closed:
            return
        if taken <= BATCH_BYTES:
            self._loop.call_soon(self._read, channel, socket)
        else:
            # a flood waits in the kernel, which has to wait with it: others get the time between
            self._loop.remove_reader(socket.fileno())
            self._loop.call_later(taken / BYTES_PER_S, self._resume, channel, socket)

    def _resume(self, channel: Channel, socket: zmq.Socket[bytes]) -> None:
        if not socket.closed:
            self._loop.add_reader(socket.fileno(), self._read, channel, socket)
            self._read(channel, socket)


def receive(socket: zmq.Socket[bytes]) -> list[bytes]:
    """Receive one multipart message and keep no more than a message may have of it. Raises zmq.Again."""
    frames = [socket.recv(zmq.NOBLOCK)]
    while socket.getsockopt(zmq.RCVMORE):
        frame = socket.recv(zmq.NOBLOCK)
        if len(frames) <= MAX_FRAMES:
            frames.append(frame)
    return frames
