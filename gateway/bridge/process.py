"""The bridge as a process: its signals, its parent, its end."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gateway.bridge import connection_file
from gateway.bridge.sweeper import Sweeper, delete_kernel, sweep
from gateway.errors import GatewayError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from gateway.bridge.connection_file import ConnectionFile
    from gateway.bridge.relay import Bridge

DELETE_S = 8.0
LOOK_S = 1.0
NO_PARENT = "1"  # what Jupyter sets JPY_PARENT_PID to for kernels that shall outlive it


@dataclass(frozen=True, slots=True)
class Order:
    """What kernel is wanted, of which gateway, and where local clients will look for it."""

    url: str
    kernel_name: str | None
    connection_file: Path
    credential: Callable[[], str]
    language: str


def run(order: Order) -> int:
    """Be a kernel's process until its end, and return the exit code.

    Raises:
        ConfigurationError: the connection file cannot be used, or its sockets cannot be bound.
    """
    parent = os.getppid()
    connection = connection_file.read(order.connection_file)
    # ours to choose, so that it can be ended whatever became of the answer to the request for it
    kernel_id = str(uuid.uuid4())
    sweeper = Sweeper.fork(lambda: asyncio.run(sweep(order.url, order.credential, kernel_id)))
    return asyncio.run(_serve(order, connection, kernel_id, parent, sweeper))


async def _serve(
    order: Order, connection: ConnectionFile, kernel_id: str, parent: int, sweeper: Sweeper
) -> int:
    # aiohttp and ZMQ are not for the sweeper
    from gateway.bridge.link import Link  # noqa: PLC0415
    from gateway.bridge.relay import Bridge  # noqa: PLC0415
    from gateway.bridge.sockets import LocalSockets  # noqa: PLC0415

    async def end_kernel() -> None:
        try:
            async with asyncio.timeout(DELETE_S):
                await delete_kernel(order.url, order.credential, kernel_id)
        except (GatewayError, TimeoutError) as error:
            _log(f"the kernel {kernel_id} could not be deleted now: {error}")
        else:
            sweeper.dismiss()

    async with LocalSockets(connection, _log) as sockets:
        link = Link(order.url, order.credential, order.kernel_name, kernel_id)
        bridge = Bridge(sockets, link, language=order.language, log=_log)
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGINT, bridge.interrupt)
        for number in (signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, bridge.end)
        watch = loop.create_task(_watch_parent(parent, bridge))
        try:
            return await bridge.run(end_kernel)
        finally:
            watch.cancel()


async def _watch_parent(parent: int, bridge: Bridge) -> None:
    """End when the process that wanted the kernel is gone, as ipykernel does."""
    told = os.environ.get("JPY_PARENT_PID", "")
    if told == NO_PARENT:
        return
    orphaned = parent == 1 and told != ""  # before it could be looked at
    while not orphaned:
        await asyncio.sleep(LOOK_S)
        orphaned = os.getppid() != parent
    _log("the process that started this kernel is gone")
    bridge.end()


def _log(text: str) -> None:
    """Say a line on stderr, where Jupyter keeps what kernels say."""
    print(f"cellblock bridge: {text}", file=sys.stderr, flush=True)  # noqa: T201
