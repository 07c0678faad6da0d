"""The local side: the five ZMQ sockets of a kernel, bound for any number of Jupyter clients."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import zmq
import zmq.asyncio

from gateway.errors import ConfigurationError
from gateway.protocol.messages import DELIMITER, MalformedMessage, Signer, make, parse, to_frames

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from gateway.bridge.connection_file import ConnectionFile
    from gateway.models import Channel, Message

KINDS = {
    "shell": zmq.ROUTER,
    "control": zmq.ROUTER,
    "stdin": zmq.ROUTER,
    "hb": zmq.ROUTER,
    "iopub": zmq.XPUB,
}
IN_HAND = 100  # requests that wait here for each local client; more wait in that client
UNREAD = 256  # messages for each local client that has not read them
STALL_S = 5.0  # how long a local client that does not read iopub may hold the others up
LOOK_S = 0.005
LINGER_MS = 1000
MISSED = "[cellblock] Output is missing here: a client on this machine did not read it in time.\n"


@dataclass(frozen=True, slots=True)
class Incoming:
    """A message of a local client's, and the client's ZMQ identity."""

    identity: list[bytes]
    message: Message


class LocalSockets:
    """Five bound sockets. Use as an async context manager.

    Output for a client that does not read holds the others up for a moment; then it is dropped for that
    client alone, and all are told.
    """

    def __init__(self, connection: ConnectionFile, log: Callable[[str], None]) -> None:
        self._connection = connection
        self._log = log
        self._signer = Signer(connection.key)
        self._context = zmq.asyncio.Context()
        self._sockets: dict[str, zmq.asyncio.Socket] = {}
        self._lossy = False
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        umask = os.umask(0o077)
        try:
            for name, kind in KINDS.items():
                self._bind(name, kind)
        except zmq.ZMQError as error:
            self._context.destroy(linger=0)
            raise ConfigurationError(f"The kernel's sockets cannot be bound: {error}.") from error
        finally:
            os.umask(umask)
        self._tasks = [asyncio.create_task(self._beat()), asyncio.create_task(self._welcome())]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._context.destroy(linger=LINGER_MS)

    async def receive(self, channel: Channel) -> Incoming:
        """Return the next good message of a channel's; others are dropped and logged."""
        socket = self._sockets[channel]
        while True:
            frames = await socket.recv_multipart()
            try:
                message = parse(frames, channel, self._signer, max_bytes=sys.maxsize)
            except MalformedMessage as error:
                self._log(f"a message on {channel} was dropped: {error}")
                continue
            return Incoming(frames[: frames.index(DELIMITER)], message)

    async def reply(self, identity: list[bytes], message: Message) -> None:
        """Send a message to one client, on the message's channel."""
        frames = [*identity, *to_frames(message, self._signer)]
        try:
            await self._sockets[message.channel].send_multipart(frames, zmq.NOBLOCK)
        except zmq.ZMQError as error:
            # EHOSTUNREACH: the client has left; EAGAIN: it has not read a hundred replies
            self._log(f"a {message.msg_type} could not be delivered: {error}")

    async def publish(self, message: Message) -> None:
        """Send a message to every client that listens on iopub."""
        frames = [message.msg_type.encode("utf-8", "replace"), *to_frames(message, self._signer)]
        if self._lossy:
            await self._recover()
        deadline = asyncio.get_running_loop().time() + STALL_S
        while not await self._published(frames):
            if asyncio.get_running_loop().time() > deadline:
                self._log("a client on this machine does not read its output: what it misses is dropped")
                self._be_lossy(True)
            await asyncio.sleep(LOOK_S)

    def _bind(self, name: str, kind: int) -> None:
        socket = self._sockets[name] = self._context.socket(kind)
        socket.linger = LINGER_MS
        socket.rcvhwm = IN_HAND
        socket.sndhwm = UNREAD
        if kind == zmq.ROUTER:
            socket.router_handover = 1  # a client that comes back under its identity
            socket.router_mandatory = 1
        else:
            socket.setsockopt(zmq.XPUB_NODROP, 1)
            socket.setsockopt(zmq.XPUB_VERBOSE, 1)
        socket.bind(self._connection.endpoint(name))

    async def _published(self, frames: list[bytes]) -> bool:
        try:
            await self._sockets["iopub"].send_multipart(frames, zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    async def _recover(self) -> None:
        """Tell all that one has missed output, once all of them read again."""
        self._be_lossy(False)
        told = make("iopub", "stream", {"name": "stderr", "text": MISSED}, parent=None, session="")
        if not await self._published([b"stream", *to_frames(told, self._signer)]):
            self._be_lossy(True)

    def _be_lossy(self, lossy: bool) -> None:
        self._lossy = lossy
        self._sockets["iopub"].setsockopt(zmq.XPUB_NODROP, int(not lossy))

    async def _beat(self) -> None:
        """Send every heartbeat back."""
        socket = self._sockets["hb"]
        while True:
            frames = await socket.recv_multipart()
            with contextlib.suppress(zmq.ZMQError):
                await socket.send_multipart(frames, zmq.NOBLOCK)

    async def _welcome(self) -> None:
        """Tell each new subscriber that it is one (JEP 65)."""
        socket = self._sockets["iopub"]
        while True:
            event = await socket.recv()
            if event[:1] == b"\x01":
                topic = event[1:].decode("utf-8", "replace")
                told = make("iopub", "iopub_welcome", {"subscription": topic}, parent=None, session="")
                await self._published([event[1:], *to_frames(told, self._signer)])
