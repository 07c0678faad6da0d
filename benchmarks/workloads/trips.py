"""`1+1` and back, by every door, and beside the server to the very same kernel by ZeroMQ alone."""

from __future__ import annotations

import gc
import random
from typing import TYPE_CHECKING

from benchmarks.workloads.workload import SUM, TWO, kernels

if TYPE_CHECKING:
    from benchmarks.samples import Samples
    from benchmarks.sizes import Sizes
    from benchmarks.targets.target import Kernel, Target


def subject_of(target: Target, door: str) -> str:
    """Return what a door of a target is called."""
    if not target.server:
        return target.name
    return f"raw ZMQ to {target.name}'s kernel" if door == "raw" else f"{target.name}, {door}"


class Trips:
    """Round trips to a kernel that has nothing else to do."""

    name = "trips"
    bound_s = 240.0
    starts = False

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance

    def rounds(self, sizes: Sizes) -> int:
        """Return how often it is measured."""
        return sizes.rounds

    def takes(self, target: Target) -> bool:  # noqa: ARG002 - all of them
        """Tell whether it can be measured on a target."""
        return True

    async def measure(self, target: Target, sizes: Sizes, samples: Samples) -> None:
        """Measure one door after the other on one kernel; no other door is open then."""
        async with kernels(target, 1, session=True) as (kernel,):
            for door in self._chance.sample(target.doors, len(target.doors)):
                took = await self._by(target, kernel, door, sizes)
                samples.record("round trip of 1+1", subject_of(target, door), took, "ms")

    async def _by(self, target: Target, kernel: Kernel, door: str, sizes: Sizes) -> list[float]:
        async with target.connect(kernel, door) as wire:
            for _ in range(sizes.warm_up):
                await wire.execute(SUM)
            gc.collect()
            gc.disable()  # the client's own collector would be measured with whoever it meets
            try:
                return [(await wire.execute(SUM)).checked(TWO) * 1000 for _ in range(sizes.trips)]
            finally:
                gc.enable()
