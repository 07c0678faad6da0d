"""Bait that no cell may take: listeners, memory and sockets, laid and removed by who attacks."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import secrets
import socket
import struct
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

SIOCSIFADDR, SIOCSIFFLAGS, SIOCSIFNETMASK = 0x8916, 0x8914, 0x891C
IPC_CREAT, IPC_RMID = 0o1000, 0

libc = ctypes.CDLL(None, use_errno=True)


@contextlib.contextmanager
def documentation_address() -> Iterator[str]:
    """Give an address of 192.0.2.0/24 that is this machine's own for a while; without root, loopback's."""
    if os.geteuid() != 0:
        yield "127.0.0.1"
        return
    last = secrets.randbelow(200) + 20
    address, alias = f"192.0.2.{last}", f"lo:cb{last}".encode()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        for request, value in ((SIOCSIFADDR, address), (SIOCSIFNETMASK, "255.255.255.255")):
            wanted = struct.pack("16sHH4s8x", alias, socket.AF_INET, 0, socket.inet_aton(value))
            fcntl.ioctl(control, request, wanted)
        try:
            yield address
        finally:
            fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sh14x", alias, 0))


@contextlib.contextmanager
def laid(directory: Path) -> Iterator[dict[str, str]]:
    """Lay out the bait; give the placeholders that name it. `directory` is for the path socket."""
    token = secrets.token_hex(6)
    memory = Path(f"/dev/shm/cellblock-bait-{token}")  # noqa: S108 - where a cell may not see it
    key = secrets.randbelow(1 << 30) + 1
    with contextlib.ExitStack() as stack:
        address = stack.enter_context(documentation_address())
        listener = stack.enter_context(socket.create_server((address, 0)))
        abstract = stack.enter_context(socket.socket(socket.AF_UNIX))
        abstract.bind(f"\0cellblock-bait-{token}")
        abstract.listen()
        path = stack.enter_context(socket.socket(socket.AF_UNIX))
        path.bind(str(directory / "bait.sock"))
        (directory / "bait.sock").chmod(0o600)
        path.listen()
        memory.write_text("bait")
        stack.callback(memory.unlink)
        segment = libc.shmget(key, 4096, IPC_CREAT | 0o666)
        stack.callback(libc.shmctl, segment, IPC_RMID, None)
        machine = Path("/etc/machine-id")
        yield {
            "BAIT_ADDR": address,
            "BAIT_PORT": str(listener.getsockname()[1]),
            "ABSTRACT": f"cellblock-bait-{token}",
            "HOST_SOCK": str(directory / "bait.sock"),
            "SHM_NAME": memory.name,
            "SHMKEY": str(key),
            "MACHINE_ID": (machine.read_text().strip() if machine.exists() else "") or "no-machine-id",
        }
