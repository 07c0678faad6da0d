"""JSON packets with descriptors over a SOCK_SEQPACKET unix socket, on the event loop."""

from __future__ import annotations

import array
import asyncio
import contextlib
import json
import os
import socket
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from gateway.sandbox.wire import MAX_PACKET


@contextlib.contextmanager
def beside(path: Path) -> Iterator[str]:
    """Hold a socket's directory and give a short path to it: a longer one than 107 bytes cannot be bound."""
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


def connect(path: Path) -> socket.socket:
    """Connect to a warden's socket, without waiting. Raises OSError."""
    connected = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connected.setblocking(False)
    try:
        with beside(path) as name:
            connected.connect(name)
    except OSError:
        connected.close()
        raise
    return connected


def listen(path: Path, *, gid: int | None) -> socket.socket:
    """Bind a warden's socket; with a `gid` its group may connect. Raises OSError."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with beside(path) as name:
        listener.bind(name)
        Path(name).chmod(0o600 if gid is None else 0o660)
        if gid is not None:
            os.chown(name, -1, gid)
    listener.listen(16)
    return listener


class Packets:
    """One end of a conversation; owns its socket.

    `on_packet(object, descriptors)` gets every packet and owns the descriptors, which are None where this
    process has no room for those that came; `on_close()` is called once, when the other side is gone or says
    what is no JSON object.
    """

    def __init__(
        self,
        connected: socket.socket,
        on_packet: Callable[[dict[str, Any], list[int] | None], None],
        on_close: Callable[[], None],
    ) -> None:
        self._socket = connected
        self._on_packet = on_packet
        self._on_close = on_close
        self._loop = asyncio.get_running_loop()
        self.open = True
        connected.setblocking(False)
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * MAX_PACKET)
        self._loop.add_reader(connected, self._readable)

    def send(self, packet: dict[str, Any], descriptors: Sequence[int] = ()) -> None:
        """Send one packet. A peer that does not read is given up, so this never waits."""
        data = json.dumps(packet).encode()
        ancillary = (
            [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        )
        try:
            self._socket.sendmsg([data], ancillary, socket.MSG_NOSIGNAL)
        except OSError:
            self.close()

    def close(self) -> None:
        """End the conversation. Closing twice is harmless."""
        if self.open:
            self.open = False
            self._loop.remove_reader(self._socket)
            self._socket.close()
            self._on_close()

    def _readable(self) -> None:
        descriptors: list[int] = []
        try:
            data, descriptors, flags, _ = socket.recv_fds(
                self._socket, MAX_PACKET, 4, socket.MSG_CMSG_CLOEXEC
            )
            if not data or flags & socket.MSG_TRUNC:
                raise ConnectionError
            packet = json.loads(data)
            if not isinstance(packet, dict):
                raise ConnectionError
        except BlockingIOError:
            return
        except (OSError, ValueError, RecursionError):
            close_all(descriptors)
            self.close()
            return
        if flags & socket.MSG_CTRUNC:
            close_all(descriptors)
            self._on_packet(packet, None)
        else:
            self._on_packet(packet, descriptors)


def close_all(descriptors: Iterable[int]) -> None:
    """Close descriptors."""
    for descriptor in descriptors:
        os.close(descriptor)


def peer_uid(connected: socket.socket) -> int:
    """Return the uid of the process at the other end (SO_PEERCRED)."""
    credentials = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", credentials)[1])
