"""Kernels without a server and without a cell, over ipc: the floor, by ZeroMQ alone and by jupyter_client."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Self

from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager

from benchmarks.processes import Family, with_argument
from benchmarks.targets.incumbents import KERNEL_ARGV, KERNELSPEC, own_directories, write_kernelspec
from benchmarks.targets.target import Kernel
from benchmarks.wires.manager import JupyterClient
from benchmarks.wires.raw import Address, Raw
from benchmarks.wires.wire import new_id

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence
    from types import TracebackType

    import zmq

    from benchmarks.wires.wire import Wire


class Local:
    """What both floors share: a directory, no server, and kernels that are processes of ours."""

    server = False
    keeps = False
    warm = False

    async def __aenter__(self) -> Self:
        self._home = Path(tempfile.mkdtemp(prefix="bench-"))
        # as jupyter_client has it: a kernel ends itself when we are gone
        parent = {"JPY_PARENT_PID": str(os.getpid())}
        self._env = {**os.environ, **own_directories(self._home), **parent}
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        Family(self.kernel_pids()).end(0.0)
        shutil.rmtree(self._home, ignore_errors=True)

    def parts(self) -> Mapping[str, Sequence[int]]:
        """There is no server."""
        return {}

    def kernel_pids(self) -> Sequence[int]:
        """Return the kernels' processes."""
        raise NotImplementedError

    async def restart(self) -> float:
        """There is nothing to restart."""
        raise NotImplementedError


class Bare(Local):
    """A kernel process and its sockets, with nothing around them."""

    name = "raw ZMQ"
    doors = ("raw",)

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        self._context = context
        self._kernels: dict[str, tuple[subprocess.Popen[bytes], Address]] = {}

    async def create(self, *, session: bool = False) -> Kernel:  # noqa: ARG002 - there are no sessions here
        """Start the process; it binds its sockets in its own time."""
        kernel_id = new_id()[:12]
        connection = {
            "transport": "ipc",
            "ip": str(self._home / kernel_id),
            **{f"{name}_port": n for n, name in enumerate(("shell", "iopub", "stdin", "control", "hb"), 1)},
            "key": secrets.token_hex(32),
            "signature_scheme": "hmac-sha256",
        }
        file = self._home / f"{kernel_id}.json"
        file.write_text(json.dumps(connection))
        argv = [part.format(connection_file=file) for part in KERNEL_ARGV]
        process = subprocess.Popen(  # noqa: ASYNC220 - a fork is what is measured
            argv,
            env=self._env,
            cwd=self._home,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._kernels[kernel_id] = (process, Address.of(connection))
        return Kernel(kernel_id)

    async def delete(self, kernel: Kernel) -> None:
        """Kill the process."""
        process, _ = self._kernels.pop(kernel.id)
        process.kill()
        process.wait()

    @contextlib.asynccontextmanager
    async def connect(self, kernel: Kernel, door: str) -> AsyncIterator[Wire]:  # noqa: ARG002 - there is one
        """Connect to the kernel's sockets as soon as they are there."""
        with contextlib.closing(Raw(self._context, self._kernels[kernel.id][1])) as raw:
            # in a thread, so that others can be started meanwhile
            await asyncio.to_thread(raw.wait_until_heard)
            yield raw

    def kernel_pids(self) -> Sequence[int]:
        """Return the kernels' processes."""
        return [process.pid for process, _ in self._kernels.values()]


class Managed(Local):
    """A kernel by jupyter_client's manager and client: what a notebook tool without a server has."""

    name = "jupyter_client"
    doors = ("client",)

    def __init__(self) -> None:
        self._managers: dict[str, AsyncKernelManager] = {}

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        write_kernelspec(self._home / "kernels" / KERNELSPEC)
        self._specs = KernelSpecManager(kernel_dirs=[str(self._home / "kernels")])
        return self

    async def create(self, *, session: bool = False) -> Kernel:  # noqa: ARG002 - there are no sessions here
        """Start a kernel."""
        kernel_id = new_id()[:12]
        manager = AsyncKernelManager(
            connection_file=str(self._home / f"{kernel_id}.json"),
            transport="ipc",
            kernel_name=KERNELSPEC,
            kernel_spec_manager=self._specs,
            shutdown_wait_time=0.5,
        )
        await manager.start_kernel(env=self._env, cwd=str(self._home))
        self._managers[kernel_id] = manager
        return Kernel(kernel_id)

    async def delete(self, kernel: Kernel) -> None:
        """End a kernel."""
        await self._managers.pop(kernel.id).shutdown_kernel(now=True)

    @contextlib.asynccontextmanager
    async def connect(self, kernel: Kernel, door: str) -> AsyncIterator[Wire]:  # noqa: ARG002 - there is one
        """Open the channels, and wait as jupyter_client waits."""
        client = self._managers[kernel.id].client()
        client.start_channels(hb=False)
        try:
            await client.wait_for_ready(timeout=40)
            yield JupyterClient(client)
        finally:
            client.stop_channels()

    def kernel_pids(self) -> Sequence[int]:
        """Return the kernels' processes."""
        managers = self._managers.values()
        return [pid for manager in managers for pid in with_argument(str(manager.connection_file))]
