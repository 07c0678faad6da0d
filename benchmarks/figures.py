"""The figures of one run on this machine: start and round trip against raw ZMQ, threads, descriptors.

Usage: .venv/bin/python benchmarks/figures.py [ROUNDS]. It needs what `make test` installs, and measures the
mode that it runs in: root's, or a user's.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from jupyter_client.manager import AsyncKernelManager

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.gateway import Gateway, running
from tests.machine import PROC, entries

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.gateway import Client

ROOM = {"CELLBLOCK_KERNELS__MAX_KERNELS_PER_OWNER": "50"}
ENVIRONMENT = Path("/srv/cellblock/envs/python3")


async def timed(work: Callable[[], Awaitable[object]], rounds: int) -> list[float]:
    """Run something so often, and return the milliseconds that each took."""
    took = []
    for _ in range(rounds):
        begun = time.perf_counter()
        await work()
        took.append((time.perf_counter() - begun) * 1000)
    return took


def summary(took: list[float]) -> dict[str, float]:
    """Return median, 95th percentile and count."""
    ordered = sorted(took)
    return {
        "p50_ms": round(statistics.median(ordered), 2),
        "p95_ms": round(ordered[int(len(ordered) * 0.95) - 1], 2),
        "n": len(ordered),
    }


class Raw:
    """A kernel without a cell over ipc, by jupyter_client alone: the floor."""

    def __init__(self, directory: str) -> None:
        # set first: the sockets' path is derived from it, or they land in the working directory
        file = str(Path(directory) / "raw.json")
        self.manager = AsyncKernelManager(
            connection_file=file, transport="ipc", kernel_name="raw", shutdown_wait_time=0.5
        )
        spec = Path(directory) / "kernels" / "raw"
        spec.mkdir(parents=True, exist_ok=True)
        python = str(ENVIRONMENT / "bin" / "python")
        argv = [python, "-Xfrozen_modules=off", "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        (spec / "kernel.json").write_text(
            json.dumps({"argv": argv, "display_name": "raw", "language": "python"})
        )
        self.manager.kernel_spec_manager.kernel_dirs = [str(spec.parent)]

    async def start(self) -> None:
        """Start and wait for the first reply, with no fixed waits: kernel_info until one comes back."""
        await self.manager.start_kernel()
        self.client = self.manager.client()
        self.client.start_channels(hb=False)
        await self.client.wait_for_ready(timeout=30)

    async def run(self, code: str = "1+1") -> None:
        """Execute, and wait for the reply and the idle status."""
        msg_id = self.client.execute(code)
        replied = idle = False
        while not replied:
            reply = await self.client.get_shell_msg(timeout=10)
            replied = reply["parent_header"].get("msg_id") == msg_id
        while not idle:
            said = await self.client.get_iopub_msg(timeout=10)
            idle = (
                said["parent_header"].get("msg_id") == msg_id
                and said["content"].get("execution_state") == "idle"
            )

    async def end(self) -> None:
        """End the kernel."""
        self.client.stop_channels()
        await self.manager.shutdown_kernel(now=True)


async def start_and_run(client: Client) -> None:
    """POST a kernel, get the first result, delete it."""
    kernel = await client.start()
    await client.run(kernel, "1+1")
    await client.delete(kernel)


async def per_kernel(gateway: Gateway, client: Client, count: int = 20) -> dict[str, float]:
    """Return the gateway's threads, descriptors and memory for each further live kernel."""
    assert gateway.process is not None
    gate = PROC / str(gateway.process.pid)

    def now() -> tuple[int, int, int]:
        rss = next(line for line in (gate / "status").read_text().splitlines() if line.startswith("VmRSS"))
        return entries(gate / "fd"), entries(gate / "task"), int(rss.split()[1])

    first = [await client.start() for _ in range(2)]
    before = now()
    more = [await client.start() for _ in range(count)]
    after = now()
    for kernel in (*first, *more):
        await client.delete(kernel)
    names = ("descriptors", "threads", "rss_kb")
    return {name: round((b - a) / count, 2) for name, a, b in zip(names, before, after, strict=True)}


async def main(rounds: int) -> None:
    """Measure, interleaved, and print JSON."""
    found: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as directory, running("--no-keep", env=ROOM) as gateway:
        async with gateway.client() as client:
            await start_and_run(client)
            starts: dict[str, list[float]] = {"cellblock": [], "raw": []}
            for _ in range(rounds):
                starts["cellblock"] += await timed(lambda: start_and_run(client), 1)
                raw = Raw(directory)
                begun = time.perf_counter()
                await raw.start()
                await raw.run()
                starts["raw"].append((time.perf_counter() - begun) * 1000)
                await raw.end()
            found["create to first result"] = {name: summary(took) for name, took in starts.items()}

            raw = Raw(directory)
            await raw.start()
            kernel = await client.start()
            trips: dict[str, list[float]] = {
                "raw": [],
                "rest": [],
                "websocket v1": [],
                "websocket legacy": [],
            }
            async with (
                client.channels(kernel, session_id="v1") as v1,
                client.channels(kernel, v1=False, session_id="legacy") as legacy,
            ):

                async def by(channels: object) -> None:
                    await channels.until_done(await channels.execute("1+1"))  # type: ignore[attr-defined]

                for _ in range(rounds):
                    trips["raw"] += await timed(raw.run, 20)
                    trips["rest"] += await timed(lambda: client.run(kernel, "1+1"), 20)
                    trips["websocket v1"] += await timed(lambda: by(v1), 20)
                    trips["websocket legacy"] += await timed(lambda: by(legacy), 20)
            await raw.end()
            await client.delete(kernel)
            found["round trip of 1+1"] = {name: summary(took) for name, took in trips.items()}
            found["per kernel, in the gateway"] = await per_kernel(gateway, client)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 10))
