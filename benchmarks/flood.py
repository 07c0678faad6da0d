"""The client of a kernel that floods, as a process of its own: `python -m benchmarks.flood URL KERNEL MODE`.

The token comes on stdin. With the mode `reading` it reads as fast as it can, with `deaf` not at all. It says
`flooding` once the flood has begun, and goes on until it is killed.
"""

from __future__ import annotations

import asyncio
import sys

import aiohttp

from benchmarks.framing import V1Framing, execute_content, request
from benchmarks.wires.wire import new_id

CODE = """
import time
_end = time.monotonic() + 60
while time.monotonic() < _end:
    print("x" * 200, flush=True)
"""


async def main(url: str, kernel_id: str, mode: str) -> None:
    """Start the flood and treat its output as the mode says."""
    token = sys.stdin.readline().strip()
    framing = V1Framing()
    async with (
        aiohttp.ClientSession(url, headers={"Authorization": f"token {token}"}) as http,
        http.ws_connect(
            f"/api/kernels/{kernel_id}/channels", protocols=framing.protocols, max_msg_size=0
        ) as socket,
    ):
        header = request("execute_request", new_id(), new_id())
        await socket.send_bytes(framing.encode(header, execute_content(CODE)))
        while framing.decode(await socket.receive_bytes()).msg_type != "stream":
            pass
        print("flooding", flush=True)
        while mode == "reading":
            await socket.receive_bytes()
        await asyncio.sleep(60)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
