"""An oracle: the kernel environment's own kernel without any sandbox, run by jupyter_client."""

from __future__ import annotations

import contextlib
import json
import os
from typing import TYPE_CHECKING, Any

from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpecManager

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from jupyter_client import AsyncKernelClient


class BareKernel:
    """A running kernel outside any cell; what it gives has the shape of the gateway's execution results."""

    def __init__(self, client: AsyncKernelClient) -> None:
        self._client = client

    async def run(self, code: str) -> dict[str, Any]:
        """Execute code and return status, stdout, and the displayed bundles."""
        stdout: list[str] = []
        shown: list[dict[str, Any]] = []

        def take(message: dict[str, Any]) -> None:
            content = message["content"]
            if message["msg_type"] == "stream" and content["name"] == "stdout":
                stdout.append(content["text"])
            elif message["msg_type"] in {"display_data", "execute_result"}:
                shown.append(content["data"])

        reply = await self._client.execute_interactive(code, allow_stdin=False, timeout=90, output_hook=take)
        return {"status": reply["content"]["status"], "stdout": "".join(stdout), "displays": shown}


@contextlib.asynccontextmanager
async def bare_kernel(python: Path, home: Path) -> AsyncIterator[BareKernel]:
    """Start the ipykernel of an environment's Python, at home in a directory, and end it afterwards."""
    specs = home / "specs"
    (specs / "bare").mkdir(parents=True)
    argv = [str(python), "-Xfrozen_modules=off", "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = {"argv": argv, "display_name": "bare", "language": "python"}
    (specs / "bare" / "kernel.json").write_text(json.dumps(spec))
    manager = AsyncKernelManager(
        kernel_name="bare",
        kernel_spec_manager=KernelSpecManager(kernel_dirs=[str(specs)], ensure_native_kernel=False),
        connection_file=str(home / "connection.json"),
        transport="ipc",
    )
    env = {"HOME": str(home), "PATH": f"{python.parent}:{os.environ['PATH']}", "LANG": "C.UTF-8"}
    await manager.start_kernel(cwd=str(home), env=env)
    client = manager.client()
    client.start_channels()
    try:
        await client.wait_for_ready(timeout=60)
        yield BareKernel(client)
    finally:
        client.stop_channels()
        await manager.shutdown_kernel(now=True)
