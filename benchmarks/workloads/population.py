"""Many kernels that live at once: what they cost while they work, while they idle, and in memory."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING

from benchmarks.outcome import Outcome
from benchmarks.processes import cpu_s, use_of
from benchmarks.workloads.workload import SUM, TWO, delete_all, each, settled

if TYPE_CHECKING:
    from benchmarks.processes import Use
    from benchmarks.samples import Samples
    from benchmarks.sizes import Sizes
    from benchmarks.targets.target import Kernel, Target
    from benchmarks.wires.wire import Wire

PERIOD_S = 1.0
ANSWER_S = 30.0


class Population:
    """So many kernels with a socket each, grown from one number to the next."""

    name = "population"
    bound_s = 600.0
    starts = False

    def rounds(self, sizes: Sizes) -> int:  # noqa: ARG002 - it takes minutes
        """Return how often it is measured."""
        return 1

    def takes(self, target: Target) -> bool:
        """Tell whether it can be measured on a target."""
        return target.server

    async def measure(self, target: Target, sizes: Sizes, samples: Samples) -> None:
        """Start, load, let idle; at the end also measure memory, and a restart where kernels outlive it."""
        made: list[Kernel] = []
        answered: list[Kernel] = []

        async def start(_: int) -> None:
            kernel = await target.create()
            made.append(kernel)
            await settled(target, kernel)
            answered.append(kernel)

        try:
            await asyncio.sleep(sizes.settle_s)
            empty = _parts(target)
            for count in sizes.populations:
                try:
                    await each(range(count - len(made)), start)
                except* ConnectionError as error:
                    if target.keeps:
                        raise
                    # an incumbent's own bound is a result, and not a failure of the benchmark
                    samples.notes.append(
                        f"{target.name} did not come to {count} kernels: {error.exceptions[0]}"
                    )
                samples.record(f"kernels reached of {count}", target.name, [len(answered)], "kernels")
                if len(answered) < count:
                    return
                await self._at(target, made, empty, sizes, samples)
            if target.keeps:
                await reconnected(target, made, f"{len(made)} sockets back after a restart", samples)
        finally:
            await delete_all(target, made)

    async def _at(
        self, target: Target, made: list[Kernel], empty: dict[str, Use], sizes: Sizes, samples: Samples
    ) -> None:
        """Measure with the kernels that there are now."""
        count = len(made)
        await asyncio.sleep(sizes.settle_s)
        without_sockets = _parts(target)
        memory = use_of(target.kernel_pids())
        samples.record(
            f"memory of one of {count} kernels (PSS)", target.name, [memory.pss_kb / 1024 / count], "MB"
        )
        _per(f"one of {count} kernels costs", target, count, (empty, without_sockets), samples)
        async with contextlib.AsyncExitStack() as stack:
            wires = [
                await stack.enter_async_context(target.connect(kernel, target.doors[0])) for kernel in made
            ]
            with_sockets = _parts(target)
            _per(f"one of {count} sockets costs", target, count, (without_sockets, with_sockets), samples)
            await _work(target, wires, sizes.load_s, samples)
            await asyncio.sleep(sizes.settle_s)
            await _idle(target, count, sizes.idle_s, samples)


async def _work(target: Target, wires: list[Wire], load_s: float, samples: Samples) -> None:
    """Have every kernel run a cell each second."""
    metric = f"{len(wires)} kernels, a cell a second"
    took: list[float] = []
    begun = time.perf_counter()

    async def loop(item: tuple[int, Wire]) -> None:
        number, wire = item
        turn = begun + PERIOD_S * number / len(wires)
        while turn < begun + load_s:
            await asyncio.sleep(max(0.0, turn - time.perf_counter()))
            took.append((await wire.execute(SUM)).checked(TWO) * 1000)
            # who is late skips turns: the rate falls then, and says so
            turn += PERIOD_S * max(1, -int((turn - time.perf_counter()) // PERIOD_S))

    before = _cpu(target)
    await each(enumerate(wires), loop, at_once=len(wires))
    elapsed = time.perf_counter() - begun
    for part, used in _cpu(target).items():
        samples.record(
            f"{metric}: CPU", f"{target.name} {part}", [100 * (used - before[part]) / elapsed], "% of a core"
        )
    samples.record(metric, target.name, took, "ms")
    samples.record(f"{metric}: rate", target.name, [len(took) / elapsed], "per s")


async def _idle(target: Target, count: int, idle_s: float, samples: Samples) -> None:
    """Let all of them idle, with their sockets open."""
    before, begun = _cpu(target), time.perf_counter()
    await asyncio.sleep(idle_s)
    elapsed = time.perf_counter() - begun
    for part, used in _cpu(target).items():
        metric = f"{count} idle kernels: CPU"
        samples.record(
            metric, f"{target.name} {part}", [100 * (used - before[part]) / elapsed], "% of a core"
        )


async def reconnected(target: Target, made: list[Kernel], metric: str, samples: Samples) -> None:
    """Restart the server, and measure until every kernel has answered with what it held before."""
    for kernel in made:
        async with target.connect(kernel, target.doors[0]) as wire:
            (await wire.execute(f"mark = {kernel.id!r}")).checked(Outcome())

    async def again(kernel: Kernel) -> None:
        async with asyncio.timeout(ANSWER_S):
            while True:
                with contextlib.suppress(OSError, ValueError):
                    async with target.connect(kernel, target.doors[0]) as wire:
                        (await wire.execute("mark")).checked(Outcome(result=repr(kernel.id)))
                        return
                await asyncio.sleep(0.02)

    begun = time.perf_counter()
    started_s = await target.restart()
    serving = time.perf_counter()
    await each(made, again, at_once=len(made))
    answered = time.perf_counter()
    samples.record(f"{metric}: from its start", target.name, [started_s + answered - serving], "s")
    samples.record(f"{metric}: from its stop", target.name, [answered - begun], "s")


def _parts(target: Target) -> dict[str, Use]:
    return {part: use_of(pids) for part, pids in target.parts().items()}


def _cpu(target: Target) -> dict[str, float]:
    return {part: sum(map(cpu_s, pids)) for part, pids in target.parts().items()}


def _per(
    metric: str, target: Target, count: int, uses: tuple[dict[str, Use], dict[str, Use]], samples: Samples
) -> None:
    """Record what each of so many has added to the server's processes, from before to after."""
    before, after = uses
    for part, use in after.items():
        grown = {
            "MB": (use.pss_kb - before[part].pss_kb) / 1024,
            "descriptors": use.descriptors - before[part].descriptors,
            "threads": use.threads - before[part].threads,
        }
        for unit, amount in grown.items():
            samples.record(f"{metric}: {unit}", f"{target.name} {part}", [amount / count], unit)
