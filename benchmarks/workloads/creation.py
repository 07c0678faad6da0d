"""From asking for a kernel to its first reply: one by one, many at once, and one for every execution."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from benchmarks.workloads.workload import SUM, TWO, delete_all, each

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from benchmarks.samples import Samples
    from benchmarks.sizes import Sizes
    from benchmarks.targets.target import Kernel, Target
    from benchmarks.wires.wire import Wire

FIRST_REPLY_S = 120.0
WORKERS = 4


async def first_reply(target: Target, made: list[Kernel]) -> float:
    """Start a kernel and have it answer; return the milliseconds."""
    begun = time.perf_counter()
    kernel = await target.create()
    made.append(kernel)
    async with target.connect(kernel, target.doors[0]) as wire:
        answer = await wire.execute(SUM, FIRST_REPLY_S)
        took_ms = (time.perf_counter() - begun) * 1000
    answer.checked(TWO)
    return took_ms


class Creation:
    """One start after the other."""

    name = "creation"
    bound_s = 120.0
    starts = True

    def rounds(self, sizes: Sizes) -> int:
        """Return how often it is measured."""
        return sizes.rounds

    def takes(self, target: Target) -> bool:  # noqa: ARG002 - all of them
        """Tell whether it can be measured on a target."""
        return True

    async def measure(self, target: Target, sizes: Sizes, samples: Samples) -> None:
        """Start, run, delete. Warm kernels are replaced before others have their turn."""
        if target.warm:
            await target.ready()  # type: ignore[attr-defined]
        for _ in range(sizes.creates):
            made: list[Kernel] = []
            try:
                took_ms = await first_reply(target, made)
            finally:
                await delete_all(target, made)
            if made[0].warm is not target.warm:
                raise RuntimeError("the kernel was not started as it should be")
            samples.record("create to first reply", target.name, [took_ms], "ms")
        if target.warm:
            await target.ready()  # type: ignore[attr-defined]


class Burst:
    """Many starts at the same moment."""

    name = "burst"
    bound_s = 300.0
    starts = True

    def rounds(self, sizes: Sizes) -> int:
        """Return how often it is measured."""
        return sizes.long_rounds

    def takes(self, target: Target) -> bool:
        """Tell whether it can be measured on a target."""
        return target.name != "jupyter_client"

    async def measure(self, target: Target, sizes: Sizes, samples: Samples) -> None:
        """Start so many at once, each with its first reply, and count those that fail."""
        for count in sizes.bursts:
            made: list[Kernel] = []
            try:
                begun = time.perf_counter()
                starts = (first_reply(target, made) for _ in range(count))
                results = await asyncio.gather(*starts, return_exceptions=True)
                took_s = time.perf_counter() - begun
            finally:
                await delete_all(target, made)
            failed = [result for result in results if isinstance(result, BaseException)]
            for failure in failed[:3]:
                samples.fail(f"{count} creates at once, {target.name}: {failure!r}")
            metric = f"{count} creates at once"
            samples.record(f"{metric}, failed", target.name, [len(failed)], "kernels")
            if not failed:
                samples.record(f"{metric}, all answered", target.name, [took_s], "s")
            for result in results:
                if not isinstance(result, BaseException):
                    samples.record(f"{metric}, each", target.name, [result], "ms")


class OneShots:
    """A kernel for every execution, some clients at once, for a while."""

    name = "oneshots"
    bound_s = 120.0
    starts = True

    def rounds(self, sizes: Sizes) -> int:
        """Return how often it is measured."""
        return sizes.long_rounds

    def takes(self, target: Target) -> bool:
        """Tell whether it can be measured on a target."""
        return target.server

    async def measure(self, target: Target, sizes: Sizes, samples: Samples) -> None:
        """Create, run and delete as often as it goes; on Cellblock also by its own door for that."""
        one_shot = getattr(target, "one_shot", None)

        async def in_three_steps() -> None:
            made: list[Kernel] = []
            try:
                await first_reply(target, made)
            finally:
                await delete_all(target, made)

        async def in_one(wire: Wire) -> None:
            (await wire.execute(SUM)).checked(TWO)

        await self._sustain(in_three_steps, target.name, sizes, samples)
        if one_shot is not None:
            await self._sustain(lambda: in_one(one_shot()), f"{target.name}, one request", sizes, samples)

    async def _sustain(
        self, work: Callable[[], Awaitable[None]], subject: str, sizes: Sizes, samples: Samples
    ) -> None:
        done: list[float] = []
        begun = time.perf_counter()

        async def worker(_: int) -> None:
            while time.perf_counter() - begun < sizes.one_shots_s:
                await work()
                done.append(time.perf_counter())

        await each(range(WORKERS), worker)
        samples.record("one-shot executions", subject, [len(done) / (max(done) - begun)], "per s")
