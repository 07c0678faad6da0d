"""A Jupyter installation with kernelspecs of Cellblock's, and kernels that are started from them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import time
from pathlib import Path
from queue import Empty
from typing import TYPE_CHECKING, Any

import zmq.asyncio
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager

from tests.gateway import COMMAND

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from jupyter_client.asynchronous.client import AsyncKernelClient

    from tests.gateway import Gateway

NAME = "cellblock-python3"


class Jupyter:
    """A user's Jupyter: everything that it keeps is below one directory."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.log_path = home / "kernel.log"
        mine = {"HOME": home, "JUPYTER_DATA_DIR": home / "data", "JUPYTER_RUNTIME_DIR": home / "rt"}
        mine |= {"JUPYTER_CONFIG_DIR": home / "config", "IPYTHONDIR": home / "ipython"}
        self.env = {**os.environ, **{name: str(path) for name, path in mine.items()}}
        self.env.pop("CELLBLOCK_KEY", None)
        (home / "rt").mkdir(parents=True, exist_ok=True)

    @property
    def kernels(self) -> Path:
        """Where the user's kernelspecs are."""
        return self.home / "data" / "kernels"

    @property
    def key_file(self) -> Path:
        """Where the key of the kernelspec is."""
        return self.home / ".config" / "cellblock" / "keys" / NAME

    @property
    def log(self) -> str:
        """What bridges have said on stderr."""
        return self.log_path.read_text() if self.log_path.exists() else ""

    def cellblock(self, *arguments: str, stdin: str = "", **env: str) -> subprocess.CompletedProcess[str]:
        """Run a `cellblock` command to its end."""
        return subprocess.run(
            [str(COMMAND), *arguments],
            env=self.env | env,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

    def install(self, gateway: Gateway, *arguments: str, key: str | None = None) -> None:
        """Install the kernelspec, with its key in a file."""
        done = self.cellblock(
            *("kernelspec", "install", "--gateway", gateway.url, "--store-key", *arguments),
            stdin=f"{key or gateway.key()}\n",
        )
        assert done.returncode == 0, done.stderr

    @contextlib.asynccontextmanager
    async def kernel(self, *, transport: str = "tcp", **env: str) -> AsyncIterator[Local]:
        """Start a kernel by jupyter_client, with a client that is ready; both are gone afterwards."""
        context = zmq.asyncio.Context()
        manager = AsyncKernelManager(
            context=context,
            kernel_name=NAME,
            kernel_spec_manager=KernelSpecManager(kernel_dirs=[str(self.kernels)]),
            connection_file=str(self.home / "rt" / f"kernel-{time.monotonic_ns()}.json"),
            transport=transport,
        )
        with self.log_path.open("ab") as log:
            await manager.start_kernel(env=self.env | env, stderr=log)
            local = Local(manager)
            try:
                await local.connect()
                yield local
            finally:
                local.close()
                if manager.has_kernel:
                    await manager.shutdown_kernel()
                await manager._async_cleanup_resources()
                context.destroy(linger=0)


class Run:
    """What came of one execution."""

    def __init__(self, reply: dict[str, Any], seen: list[dict[str, Any]]) -> None:
        self.reply = reply["content"]
        self.seen = seen

    def of(self, *msg_types: str) -> list[dict[str, Any]]:
        """Return the contents of the messages of some types."""
        return [message["content"] for message in self.seen if message["msg_type"] in msg_types]

    def text(self, name: str = "stdout") -> str:
        """Return what was printed."""
        return "".join(part["text"] for part in self.of("stream") if part["name"] == name)


class Local:
    """A kernel as jupyter_client sees it, with one client."""

    def __init__(self, manager: AsyncKernelManager) -> None:
        self.manager = manager
        self.client: AsyncKernelClient = manager.client(context=manager.context)

    @property
    def pid(self) -> int:
        """The bridge's process."""
        return int(self.manager.provisioner.pid)

    async def connect(self) -> None:
        """Open the channels and wait until the kernel answers."""
        self.client.start_channels()
        await self.client.wait_for_ready(timeout=60)

    def close(self) -> None:
        """Close the channels."""
        self.client.stop_channels()

    @contextlib.asynccontextmanager
    async def another_client(self) -> AsyncIterator[Local]:
        """Connect a second client to the same process, by its connection file."""
        other = Local(self.manager)
        other.client.session = type(self.client.session)(key=self.client.session.key)
        await other.connect()
        try:
            yield other
        finally:
            other.close()

    async def run(self, code: str, *, answers: Iterable[str] = (), timeout: float = 60.0) -> Run:
        """Execute code and return what came of it; `answers` are typed when the kernel asks."""
        return await self.result(self.ask(code, allow_stdin=bool(answers)), answers=answers, timeout=timeout)

    def ask(self, code: str, **options: Any) -> str:
        """Send an execution and return its msg_id."""
        return str(self.client.execute(code, **{"allow_stdin": False, **options}))

    async def result(
        self, msg_id: str, *, answers: Iterable[str] = (), timeout: float = 60.0, seen: Iterable[Any] = ()
    ) -> Run:
        """Wait for an execution's reply and idle status."""
        typed, seen = iter(answers), list(seen)
        reply: dict[str, Any] | None = None
        idle = any(is_idle(message) for message in seen)
        async with asyncio.timeout(timeout):
            while reply is None or not idle:
                if reply is None and (found := await self._next("shell", msg_id)) is not None:
                    reply = found
                if (asked := await self._next("stdin", msg_id)) is not None:
                    seen.append(asked)
                    self.client.input(next(typed))
                if (message := await self._next("iopub", msg_id, wait_s=0.02)) is not None:
                    seen.append(message)
                    idle = idle or is_idle(message)
        return Run(reply, seen)

    async def reply(self, msg_id: str, timeout: float = 20.0) -> dict[str, Any]:
        """Wait for the reply to a request on shell."""
        async with asyncio.timeout(timeout):
            while (found := await self._next("shell", msg_id, wait_s=0.1)) is None:
                pass
        return found

    async def until(self, msg_id: str, *msg_types: str, timeout: float = 30.0) -> list[dict[str, Any]]:
        """Collect an execution's output until a message of one of these types has come."""
        seen: list[dict[str, Any]] = []
        async with asyncio.timeout(timeout):
            while not seen or seen[-1]["msg_type"] not in msg_types:
                if (message := await self._next("iopub", msg_id, wait_s=0.1)) is not None:
                    seen.append(message)
        return seen

    async def _next(self, channel: str, msg_id: str, *, wait_s: float = 0.0) -> dict[str, Any] | None:
        get = getattr(self.client, f"get_{channel}_msg")
        try:
            message: dict[str, Any] = await get(timeout=wait_s)
        except Empty:
            return None
        return message if message["parent_header"].get("msg_id") == msg_id else None


def is_idle(message: dict[str, Any]) -> bool:
    """Tell whether a message says that the kernel has done with a request."""
    return message["msg_type"] == "status" and message["content"]["execution_state"] == "idle"
