"""Agent frameworks as programs: each runs in .venv-agents, is told what to do, and answers in JSON."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.gateway import Client, Gateway

PYTHON = Path(__file__).resolve().parent.parent / ".venv-agents" / "bin" / "python"
CLIENTS = Path(__file__).with_name("clients")
BUSY_S = 30.0

PLOT = "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()"
HTML = "from IPython.display import HTML\nHTML('<b>bold</b>')"
# longer than the 1 MiB that these clients take in one message, by default
FLOOD = "print('x' * 2_000_000)"
LONG_ERROR = "raise ValueError('y' * 300_000)"
SLEEP = "import time; print('begun', flush=True); time.sleep(600)"


async def run(
    program: str,
    gateway: Gateway,
    *codes: str,
    within_s: float = 90.0,
    scopes: str = "kernels,execute",
    **job: Any,
) -> Any:
    """Let a program execute codes on a gateway, one after the other, and return its answer."""
    order = {"url": gateway.url, "token": gateway.key(scopes=scopes), "codes": codes, **job}
    with tempfile.TemporaryDirectory() as home:
        env = {"PATH": "/usr/bin:/bin", "HOME": home, "LANG": "C.UTF-8", "PYTHONNOUSERSITE": "1"}
        process = await asyncio.create_subprocess_exec(
            str(PYTHON),
            str(CLIENTS / program),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=env,
            cwd=home,
        )
        try:
            async with asyncio.timeout(within_s):
                out, err = await process.communicate(json.dumps(order).encode())
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    assert process.returncode == 0, err.decode()[-3000:]
    # frameworks print of their own accord: the answer is the last line
    return json.loads(out.splitlines()[-1])


@contextlib.asynccontextmanager
async def killed_while_busy(gateway: Gateway, client: Client) -> AsyncIterator[list[float]]:
    """Kill the next new kernel with SIGKILL while it runs something; the list gets the moment of that."""
    before = {model["id"] for model in await client.json("GET", "/api/kernels")}
    moments: list[float] = []

    async def kill() -> None:
        deadline = time.monotonic() + BUSY_S
        while time.monotonic() < deadline:
            for model in await client.json("GET", "/api/kernels"):
                if model["id"] not in before and model["execution_state"] == "busy":
                    await asyncio.sleep(0.5)
                    os.kill(gateway.kernel_pids()[-1], signal.SIGKILL)
                    moments.append(time.monotonic())
                    return
            await asyncio.sleep(0.05)
        raise AssertionError("no kernel became busy")

    killing = asyncio.create_task(kill())
    try:
        yield moments
    finally:
        killing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await killing
