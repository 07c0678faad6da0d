"""A small process that outlives the bridge, and ends its kernel when the bridge had no time to.

Jupyter kills a kernel's process group when it wants a restart at once; so does a machine without memory. The
kernel behind a gateway would live on until it is culled.
"""

from __future__ import annotations

import asyncio
import os
import signal
from typing import TYPE_CHECKING, Self

from gateway.errors import GatewayError, NotFound

if TYPE_CHECKING:
    from collections.abc import Callable

FIRST_WAIT_S = 0.5
TRIES = 9  # over about two minutes: long enough for a gateway that restarts


class Sweeper:
    """The parent's end of the sweeper: its process is there until this one has ended or says `dismiss`."""

    def __init__(self, pipe: int) -> None:
        self._pipe = pipe

    @classmethod
    def fork(cls, sweep: Callable[[], None]) -> Self:
        """Fork a process that calls `sweep` once this one is gone. To be called before there are threads."""
        read, write = os.pipe()
        if os.fork() != 0:
            os.close(read)
            return cls(write)
        try:
            os.close(write)
            _stand_apart()
            if not os.read(read, 1):
                sweep()
        finally:
            os._exit(0)

    def dismiss(self) -> None:
        """Say that nothing is left to do."""
        os.write(self._pipe, b".")


async def delete_kernel(url: str, credential: Callable[[], str], kernel_id: str) -> None:
    """End a kernel, if it is there. Raises GatewayError."""
    from gateway.client import Client  # noqa: PLC0415 - most sweepers never need it

    try:
        async with Client(url, credential(), retries=0) as client:
            await client.kernels.delete(kernel_id)
    except NotFound:
        pass


async def sweep(url: str, credential: Callable[[], str], kernel_id: str) -> None:
    """End a kernel, trying for a while when its gateway does not answer."""
    wait_s = FIRST_WAIT_S
    for _ in range(TRIES):
        try:
            await delete_kernel(url, credential, kernel_id)
        except GatewayError as error:
            if error.status < 500:
                return
        else:
            return
        await asyncio.sleep(wait_s)
        wait_s = min(2 * wait_s, 30.0)


def _stand_apart() -> None:
    """Leave the bridge's process group and descriptors: what ends it shall not end this process."""
    os.setsid()
    os.chdir("/")
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in range(3):
        os.dup2(null, descriptor)
    os.close(null)
