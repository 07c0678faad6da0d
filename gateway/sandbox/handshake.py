"""The handshake with a cell's boot step: it says hello, is proved confined, and is told what to become."""

from __future__ import annotations

import asyncio
import marshal
import socket
import struct
from typing import Any

from pydantic import ValidationError

from gateway.errors import SandboxUnavailable
from gateway.models import Frozen
from gateway.sandbox.cell import settle

MAX_HELLO = 64 << 10
# an order is one packet, as `boot.main` takes it: a launch's environment, and the attendant's program
MAX_ORDER = 512 << 10


class Hello(Frozen):
    """What the boot step says of the cell that it finds itself in; see `boot.main`."""

    landlock: int
    namespaces: dict[str, str]
    filtered: dict[str, int]


class Handshake:
    """A pair of sockets: `theirs` becomes the boot step's standard input, and is the caller's to close."""

    def __init__(self, backend: str) -> None:
        self._backend = backend
        self._ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._ours.setblocking(False)
        self._ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MAX_ORDER)

    async def hello(self) -> tuple[Hello, int]:
        """Return the boot step's hello and its pid as this side sees it (SCM_CREDENTIALS cannot be forged).

        Raises:
            SandboxUnavailable: the cell ended without one, or said something else.
        """
        await self._readable()
        data, ancillary, _, _ = self._ours.recvmsg(MAX_HELLO, socket.CMSG_SPACE(struct.calcsize("3i")))
        if not data:
            raise SandboxUnavailable(
                f"{self._backend} ended before the cell was up.", reason=f"{self._backend}_failed"
            )
        for level, kind, credentials in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS:
                pid, _, _ = struct.unpack("3i", credentials)
                try:
                    return Hello.model_validate_json(data), pid
                except ValidationError:
                    break
        raise SandboxUnavailable("The cell did not say who it is.", reason="not_confined")

    async def order(self, order: dict[str, Any]) -> None:
        """Tell a cell that was proved what to become. Raises OSError when it is gone.

        In the old format of plain values that every Python reads, so that the boot step needs no parser.
        """
        await asyncio.get_running_loop().sock_sendall(self._ours, marshal.dumps(order, 2))

    async def attendant(self) -> int:
        """Return an end of the socket of the attendant that a sealed cell has left behind; -1 without one.

        It is the caller's to close.
        """
        self._ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 0)
        await self._readable()
        _, descriptors, _, _ = socket.recv_fds(self._ours, 64, 1, socket.MSG_CMSG_CLOEXEC)
        return descriptors[0] if descriptors else -1

    def close(self) -> None:
        """Let go of the warden's end."""
        self._ours.close()

    async def _readable(self) -> None:
        loop = asyncio.get_running_loop()
        readable: asyncio.Future[None] = loop.create_future()
        loop.add_reader(self._ours, settle, readable)
        try:
            await readable
        finally:
            loop.remove_reader(self._ours)
