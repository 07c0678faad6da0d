"""A kernel that breaks its own connections: it is ended, and whoever waits is told, within seconds."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from tests.security.floods import OWN_WIRE

if TYPE_CHECKING:
    from tests.gateway import Client

WAIT = "\nimport time; time.sleep(60)"
BREAKS = {
    "closes iopub": f"{OWN_WIRE}\none.shutdown(socket.SHUT_RDWR)",
    "closes everything": "import os\nos.closerange(3, 1000)",
    "a frame of no known kind": f"{OWN_WIRE}\nput(one, b'\\x48\\1x')",
    "a command that is none": f"{OWN_WIRE}\nput(one, b'\\5\\4PING')",
    "too many parts": f"{OWN_WIRE}\nfor _ in range(20): put(one, b'\\1\\0' * 32768)",
}


@pytest.mark.parametrize("how", BREAKS)
async def test_a_kernel_that_breaks_its_connection_is_ended(client: Client, how: str) -> None:
    """The execution is answered as dead long before its deadline; a restart brings the kernel back."""
    kernel = await client.start()
    async with asyncio.timeout(15):
        result = await client.run(kernel, BREAKS[how] + WAIT)
        assert (result["status"], result["reason"]) in {("dead", "killed"), ("dead", "crashed")}
        assert (await client.kernel(kernel))["execution_state"] == "dead"
        await client.json("POST", f"/api/kernels/{kernel}/restart")
        assert await client.out(kernel, "print(6 * 7)") == "42\n"
    await client.delete(kernel)
