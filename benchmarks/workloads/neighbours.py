"""What others notice of a kernel that floods, and of a client that does not read."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from typing import TYPE_CHECKING

from benchmarks.environments import ROOT
from benchmarks.workloads.workload import SUM, TWO, each, kernels

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from benchmarks.samples import Samples
    from benchmarks.sizes import Sizes
    from benchmarks.targets.target import Kernel, Target
    from benchmarks.wires.wire import Wire

PERIOD_S = 0.1
MODES = {"reading": "beside a flood", "deaf": "beside a flood that its client does not read"}


class Neighbours:
    """Round trips of quiet kernels: alone, and beside a flood."""

    name = "neighbours"
    bound_s = 240.0
    starts = False

    def rounds(self, sizes: Sizes) -> int:
        """Return how often it is measured."""
        return sizes.long_rounds

    def takes(self, target: Target) -> bool:
        """Tell whether it can be measured on a target."""
        return target.server

    async def measure(self, target: Target, sizes: Sizes, samples: Samples) -> None:
        """Measure the same kernels alone, beside a flood that is read, and beside one that is not."""
        async with kernels(target, sizes.neighbours) as quiet, contextlib.AsyncExitStack() as stack:
            wires = [
                await stack.enter_async_context(target.connect(kernel, target.doors[0])) for kernel in quiet
            ]
            await self._trips(wires, 1.0)
            took = await self._trips(wires, sizes.neighbour_s)
            samples.record("others' round trip, quiet", target.name, took, "ms")
            for mode, words in MODES.items():
                async with kernels(target, 1) as (noisy,), _flood(target, noisy, mode):
                    took = await self._trips(wires, sizes.neighbour_s)
                samples.record(f"others' round trip, {words}", target.name, took, "ms")

    async def _trips(self, wires: list[Wire], seconds: float) -> list[float]:
        took: list[float] = []
        end = time.perf_counter() + seconds

        async def loop(item: tuple[int, Wire]) -> None:
            number, wire = item
            await asyncio.sleep(PERIOD_S * number / len(wires))
            while time.perf_counter() < end:
                took.append((await wire.execute(SUM)).checked(TWO) * 1000)
                await asyncio.sleep(PERIOD_S)

        await each(enumerate(wires), loop, at_once=len(wires))
        return took


@contextlib.asynccontextmanager
async def _flood(target: Target, kernel: Kernel, mode: str) -> AsyncIterator[None]:
    """Have a kernel flood while the body runs, its client in a process of its own: ours measures others."""
    api = target.api  # type: ignore[attr-defined]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.flood", api.url, kernel.id, mode),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        cwd=ROOT,
        start_new_session=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(f"{api.token}\n".encode())
        async with asyncio.timeout(20):
            if await process.stdout.readline() != b"flooding\n":
                raise RuntimeError("the flood's client did not come up")
        yield
        if process.returncode is not None:
            raise RuntimeError("the flood ended before the measurement")
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
