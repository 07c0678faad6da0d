"""The incumbents: jupyter_kernel_gateway and jupyter_server, with the same kernel and no sandbox."""

from __future__ import annotations

import contextlib
import json
import secrets
import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

from benchmarks.environments import python_of
from benchmarks.machine import KERNEL_PYTHON
from benchmarks.processes import descendants
from benchmarks.targets.jupyter_api import JupyterApi
from benchmarks.targets.process import ServerProcess, free_port
from benchmarks.wires.raw import Address, Raw

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence
    from types import TracebackType

    import zmq

    from benchmarks.targets.target import Kernel
    from benchmarks.wires.wire import Wire

KERNELSPEC = "benchmark"
# as the gateway's kernelspec has it
KERNEL_ARGV = [
    KERNEL_PYTHON,
    "-Xfrozen_modules=off",
    "-m",
    "ipykernel_launcher",
    "-f",
    "{connection_file}",
]


class Incumbent:
    """One of them, on directories of its own. Its output limits are off, all else is as shipped."""

    doors = ("v1", "legacy", "raw")
    server = True
    keeps = False
    warm = False

    def __init__(
        self,
        name: str,
        context: zmq.Context[zmq.Socket[bytes]],
        command: Callable[[int, str, Path], list[str]],
    ) -> None:
        self.name = name
        self._context = context
        self._command = command

    async def __aenter__(self) -> Self:
        self._home = Path(tempfile.mkdtemp(prefix=f"bench-{self.name}-"))
        write_kernelspec(self._home / "kernels" / KERNELSPEC)
        port, token = free_port(), secrets.token_hex(16)
        url = f"http://127.0.0.1:{port}"
        argv = self._command(port, token, self._home)
        self._process = ServerProcess(
            argv, own_directories(self._home), self._home / "log", f"{url}/api?token={token}"
        )
        try:
            await self._process.start()
        except BaseException:
            await self._end()
            raise
        self.api = JupyterApi(url, token, KERNELSPEC)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.api.close()
        await self._end()

    async def create(self, *, session: bool = False) -> Kernel:  # noqa: ARG002 - no door of theirs needs one
        """Start a kernel."""
        return await self.api.create()

    async def delete(self, kernel: Kernel) -> None:
        """End a kernel."""
        await self.api.delete(kernel.id)

    @contextlib.asynccontextmanager
    async def connect(self, kernel: Kernel, door: str) -> AsyncIterator[Wire]:
        """Open a way to a kernel: through the server, or beside it to the kernel's own sockets (`raw`)."""
        if door == "raw":
            async with self.api.channels(kernel.id, "v1") as asking:
                address = await Address.asked(asking)
            with contextlib.closing(Raw(self._context, address)) as raw:
                raw.wait_until_heard()
                yield raw
        else:
            async with self.api.channels(kernel.id, door) as channels:
                yield channels

    def parts(self) -> Mapping[str, Sequence[int]]:
        """Return the server's process."""
        return {"server": [self._process.pid]}

    def kernel_pids(self) -> Sequence[int]:
        """Return all processes below the server."""
        return descendants([self._process.pid])

    async def restart(self) -> float:
        """Restart the server, with which its kernels go."""
        await self._process.stop()
        stopped = time.monotonic()
        await self._process.start()
        return time.monotonic() - stopped

    async def _end(self) -> None:
        await self._process.stop()
        shutil.rmtree(self._home, ignore_errors=True)


def kernel_gateway(context: zmq.Context[zmq.Socket[bytes]]) -> Incumbent:
    """Return jupyter_kernel_gateway."""

    def command(port: int, token: str, home: Path) -> list[str]:  # noqa: ARG001
        options = {
            "KernelGatewayApp.ip": "127.0.0.1",
            "KernelGatewayApp.port": port,
            "KernelGatewayApp.port_retries": 0,
            "KernelGatewayApp.auth_token": token,
            "JupyterWebsocketPersonality.list_kernels": True,
            "ZMQChannelsWebsocketConnection.limit_rate": False,
        }
        return [python_of("kernel-gateway"), "-m", "kernel_gateway", *flags(options)]

    return Incumbent("kernel_gateway", context, command)


def jupyter_server(context: zmq.Context[zmq.Socket[bytes]]) -> Incumbent:
    """Return jupyter_server."""

    def command(port: int, token: str, home: Path) -> list[str]:
        options = {
            "ServerApp.ip": "127.0.0.1",
            "ServerApp.port": port,
            "ServerApp.port_retries": 0,
            "IdentityProvider.token": token,
            "ServerApp.root_dir": home / "root",
            "ServerApp.allow_root": True,
            "ServerApp.open_browser": False,
            "ZMQChannelsWebsocketConnection.limit_rate": False,
        }
        (home / "root").mkdir()
        return [python_of("jupyter-server"), "-m", "jupyter_server", *flags(options)]

    return Incumbent("jupyter_server", context, command)


def flags(options: Mapping[str, object]) -> list[str]:
    """Return options as traitlets' command lines have them."""
    return [f"--{name}={value}" for name, value in options.items()]


def own_directories(home: Path) -> dict[str, str]:
    """Return the variables that keep Jupyter and IPython away from what the user has."""
    places = ("JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_DATA_DIR", "IPYTHONDIR")
    return {
        **{place: str(home / place.lower()) for place in places},
        "JUPYTER_PATH": str(home),
        "JUPYTER_NO_CONFIG": "1",
        "HOME": str(home),
    }


def write_kernelspec(directory: Path) -> None:
    """Write the kernelspec of the kernel that all targets run."""
    directory.mkdir(parents=True)
    spec = {"argv": KERNEL_ARGV, "display_name": "Benchmark", "language": "python"}
    (directory / "kernel.json").write_text(json.dumps(spec))
